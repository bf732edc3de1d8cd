"""Pictures that contents are drawn from."""
