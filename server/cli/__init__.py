"""`adapterctl`: the command line, on a store directly or over a server's admin API."""
