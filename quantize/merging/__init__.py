"""A version and its base made one model: streamed, fp32, rounded once."""
