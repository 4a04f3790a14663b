"""Repairs compensate for removed units: one file per repair, found by its name."""
