"""What generates load: which request comes when, what it says, and how its answer is timed."""
