"""Webhooks: what happens to contents, told to URLs of their owners' (Standard Webhooks 1.0.0)."""
