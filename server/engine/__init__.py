"""Engines: how one is sized, started, watched, stopped and talked to."""
