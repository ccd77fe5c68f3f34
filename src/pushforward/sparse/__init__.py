"""Sparse Jacobians: patterns, colourings and decompression. Knows linear maps; knows no tape and no operator."""
