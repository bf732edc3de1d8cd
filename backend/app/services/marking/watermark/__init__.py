"""Watermarks: marks in the pixels, which outlive what removes a manifest."""
