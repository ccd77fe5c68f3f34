"""Matrices of derivatives that are known by their products: nothing is formed unless asked for."""
