"""Which weights may go together: one file a pattern."""
