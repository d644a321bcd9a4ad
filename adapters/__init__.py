"""What an adapter is: references, intake, the store and the registry.

Imports neither `server` nor `quantize`. Tensor work (torch, transformers) sits behind
`adapters.intake.tensors` and `adapters.bases.describe` and is imported when needed.
"""

__version__ = "0.1.0"
