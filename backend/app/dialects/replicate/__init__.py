"""Replicate's predictions API at `/replicate/v1`."""
