"""Prompts as texts: what their marks mean, before anything is encoded."""
