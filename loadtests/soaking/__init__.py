"""The parts of `python -m loadtests.soak`: clients, faults, and the books of both."""
