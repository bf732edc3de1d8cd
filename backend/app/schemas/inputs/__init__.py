"""Shapes of what contents are drawn from."""
