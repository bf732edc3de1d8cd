"""From weight files to a pipeline on its device."""
