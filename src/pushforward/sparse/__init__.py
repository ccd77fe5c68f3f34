"""Sparse Jacobians: terms, layouts, patterns, colourings. Knows linear maps; knows no operator."""
