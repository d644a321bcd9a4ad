"""What travels with an adapter besides its weights: chat template, defaults, system prompt."""
