"""What the backend and the worker agree on. Depends on pydantic only."""
