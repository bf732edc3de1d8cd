"""LoRA files of every algorithm, spelling and fault, and what they should do to a weight."""
