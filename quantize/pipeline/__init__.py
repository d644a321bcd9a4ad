"""Merge and evaluate from end to end: stages whose results survive a kill, and what is published."""
