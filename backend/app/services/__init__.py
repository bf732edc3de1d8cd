"""What the backend does, free of HTTP."""
