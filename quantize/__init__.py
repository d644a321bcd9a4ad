"""Merging and re-quantizing: jobs in processes of their own. Imports `adapters`, never `server`.

Nothing lives here yet; `docs/architecture.md` says what will.
"""
