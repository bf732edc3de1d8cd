"""LoRA files: what their headers say, without torch and without the weights."""
