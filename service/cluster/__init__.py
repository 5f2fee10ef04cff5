"""Models of other processes."""
