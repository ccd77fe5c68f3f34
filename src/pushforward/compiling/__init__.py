"""Compiling: a function and its derivatives as one graph for each signature of the arguments."""
