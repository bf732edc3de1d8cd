"""From drawn pictures to the files and the result that a caller gets."""
