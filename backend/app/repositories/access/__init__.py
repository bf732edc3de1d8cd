"""SQL of who may do how much: keys, sessions, limits."""
