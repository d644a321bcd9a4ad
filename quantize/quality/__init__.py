"""What quality a model has, measured as vLLM serves it, and what it lost against another."""
