"""The registry: names, versions, tags, their history and keys, in one SQLite database.

Written through SQLAlchemy (`writer` and what it uses), read through the standard library's
sqlite3 (`reader`, `snapshot`): importing SQLAlchemy alone costs more than `adapterctl ls` may take.
"""
