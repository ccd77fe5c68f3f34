"""Colourings: which columns and rows of a sparse matrix share a seed, and how its entries are read back."""
