"""Routes of what contents are drawn from."""
