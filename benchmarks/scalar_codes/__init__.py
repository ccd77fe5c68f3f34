"""Scalar codes: small programs of numbers, on which orders of elimination are compared in the literature."""
