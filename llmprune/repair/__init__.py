"""What makes up for removed units: one file per repair, looked up by its name."""
