"""From a trainer's artifact to the canonical form: what is it, is it right, how is it served."""
