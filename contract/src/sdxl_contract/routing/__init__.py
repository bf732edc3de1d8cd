"""Where a request goes when several workers could draw it."""
