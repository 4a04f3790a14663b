"""Kinds of things that can be pruned: one file a kind, named by the patterns that prune it."""
