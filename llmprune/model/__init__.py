"""Blocks, sites and sizes; how cut sizes are written and loaded again."""
