"""Merge and evaluate from end to end: stages that survive a kill, and what is published."""
