"""Kernels of our own for operations that torch launches slowly, with torch's own bits."""
