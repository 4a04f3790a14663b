"""Blocks, sites and layer sizes; how changed sizes are stored and loaded again."""
