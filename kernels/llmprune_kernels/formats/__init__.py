"""How a sparse matrix is stored, and how one form turns into another without losing a bit."""
