"""Quantized checkpoints of other tools, read back into fp32."""
