"""fal's queue, its direct calls and its proxy at `/fal`."""
