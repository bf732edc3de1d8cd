"""Calls that are recorded once for each shape and replayed: a GPU launches them without Python."""
