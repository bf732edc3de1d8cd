"""The operator's networks, small and with random weights."""
