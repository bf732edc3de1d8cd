"""The worker onto Modal: costs, checks, deployment."""
