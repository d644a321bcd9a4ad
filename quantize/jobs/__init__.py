"""What runs inside a job's process: its kinds, what they work with, how they tell of it."""
