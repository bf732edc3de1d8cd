"""The queue for the model: who waits, who is next, and the results kept for repeated requests."""
