"""Triton kernels for pruned matrices. Knows tensors, and nothing of pruning."""
