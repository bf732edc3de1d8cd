"""One question a file; the last line of output is JSON."""
