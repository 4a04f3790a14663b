"""Kinds of sites: one file for each, which a pattern names in `prunes`."""
