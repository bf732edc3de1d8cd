"""SQL of other services' calls."""
