"""A content's life: accepted, queued, attempted, stored, read back."""
