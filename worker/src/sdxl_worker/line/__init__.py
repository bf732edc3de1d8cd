"""The line before the model: who waits, who is next, and what is kept for whoever asks again."""
