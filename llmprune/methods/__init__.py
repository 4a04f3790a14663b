"""Which weights go, and how the rest make up for it: one file per method, looked up by its name."""
