"""Allocators set the sparsity of every site: one file per rule, found by its name."""
