"""Merging and re-quantizing: jobs in processes of their own. Imports `adapters`, never `server`."""
