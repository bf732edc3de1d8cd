"""Shapes that only HTTP needs."""
