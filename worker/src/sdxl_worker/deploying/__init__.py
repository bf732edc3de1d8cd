"""What a deployment needs before the worker runs: settings, volumes, weights."""
