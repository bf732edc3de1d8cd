"""What the backend and the worker agree on. Depends on pydantic only; `drawing.edges`
alone needs NumPy and Pillow, and is imported by whoever has them."""
