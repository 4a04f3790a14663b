"""Pruning methods score weights and may update the kept ones: one file per method, found by its name."""
