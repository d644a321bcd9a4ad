"""The regression set of general abilities, for adapterctl and for lm-evaluation-harness."""
