"""The small SDXL that the demo and the tests run, and how it was trained."""
