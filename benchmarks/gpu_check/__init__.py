"""`make gpu-check`: on one GPU, offline, everything that only a GPU can show."""
