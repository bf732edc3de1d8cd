"""What tests of other services' clients share."""
