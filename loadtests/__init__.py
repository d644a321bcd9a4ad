"""Benchmarks: ratios measured in one run on one machine. Not tests: nothing here fails a build."""
