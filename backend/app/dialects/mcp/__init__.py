"""The Model Context Protocol at `/mcp`: tools for agents."""
