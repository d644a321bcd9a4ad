"""Weights rounded to few bits: what can be asked for, what fits, and the tools that do it."""
