"""Products with dense matrices of shapes that pruning leaves behind."""
