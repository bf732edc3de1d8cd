"""Request in, image out. Knows no database, no bucket and no user."""
