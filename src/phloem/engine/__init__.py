"""Storage engines of the log."""
