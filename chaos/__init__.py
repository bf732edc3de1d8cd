"""Real backends under deliberate failures, and the balance that must hold afterwards."""
