"""The demo: a small real base, three small real adapters, and the scripts that make them."""
