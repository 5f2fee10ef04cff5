"""One process: built, started, drained, stopped."""
