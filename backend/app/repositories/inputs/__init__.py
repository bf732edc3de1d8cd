"""SQL of the pictures that contents are drawn from."""
