"""Reach a size or a speed: recipes that land on it, each of them pruned and judged, and the best one kept."""
