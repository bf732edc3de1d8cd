"""A simulated fleet of workers: what latency and what an image costs at a given load."""
