"""Marks: a signed manifest (C2PA) in every picture that leaves the backend, and its reading."""
