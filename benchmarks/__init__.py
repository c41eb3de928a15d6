"""Measurements against a peer or a limit, both in the same run: ratios of pairs, median of at least five.

`make bench` runs all and writes docs/benchmarks.md; `python -m benchmarks start` runs one and prints it.
"""
