"""Admission: whose request goes to an engine next. `docs/scheduling.md` says it for operators."""
