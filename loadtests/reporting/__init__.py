"""From timed requests to figures, tables and plots."""
