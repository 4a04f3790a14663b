"""What brings quality back after pruning: one file per recovery, looked up by its name."""
