"""Whoever draws: one protocol, its two clients, and reading what came back."""
