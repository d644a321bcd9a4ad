"""Copies of a store, and of single adapters, that another store is made of (docs/backup.md)."""
