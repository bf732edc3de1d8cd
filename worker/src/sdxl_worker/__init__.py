"""Request in, image out. Knows no database, no bucket and no user."""

__version__ = "0.1.0"
