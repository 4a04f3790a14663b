"""Recoveries restore quality after pruning: one file per recovery, found by its name."""
