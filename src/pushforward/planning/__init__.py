"""Decides in which order, and with how many seeds at once, a program is run. Computes nothing."""
