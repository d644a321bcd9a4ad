"""Scripts that run in a tool's own environment, where nothing of adapterctl can be imported."""
