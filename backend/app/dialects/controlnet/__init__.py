"""The API of A1111's ControlNet extension at `/controlnet`."""
