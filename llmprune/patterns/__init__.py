"""Patterns turn importance into a mask: one file per pattern, found by its name."""
