"""A machine of random programs that looks for wrong numbers: ``make fuzz``.

`generate` writes a program as a straight list of steps, in Python's text, and a list of calls of it with changes in
between; `run` runs it and compares every result with derivatives by other means (`reference`); `shrink` drops what a
failure does not need; `__main__` is the command line.
"""
