"""OpenAI's Images API at `/v1`."""
