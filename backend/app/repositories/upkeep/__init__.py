"""SQL over all owners: what the operator, and time, do to what is kept."""
