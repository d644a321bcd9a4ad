"""The engine's routes that clients may use, and what the gateway must know of each.

A literal table: what is not in it does not reach the engine. Loading and unloading adapters,
sleeping, profiling and vLLM's other administrative routes are not for clients.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineRoute:
    """A route passed through: `path` here, `engine_path` there.

    `usage_option`: a stream tells its usage only when asked by `stream_options`.
    """

    path: str
    engine_path: str
    summary: str
    usage_option: bool = False


ENGINE_ROUTES: tuple[EngineRoute, ...] = (
    EngineRoute("/v1/chat/completions", "/v1/chat/completions", "Chat completion", True),
    EngineRoute("/v1/completions", "/v1/completions", "Text completion", True),
    EngineRoute("/v1/responses", "/v1/responses", "Response"),
    EngineRoute("/v1/embeddings", "/v1/embeddings", "Embeddings, where the base has them"),
    EngineRoute("/v1/messages", "/v1/messages", "Message (Anthropic's shape)"),
    EngineRoute("/v1/tokenize", "/tokenize", "Tokens of a text or chat"),
    EngineRoute("/v1/detokenize", "/detokenize", "Text of tokens"),
    # Where vLLM itself has them; its clients look there.
    EngineRoute("/tokenize", "/tokenize", "Tokens of a text or chat"),
    EngineRoute("/detokenize", "/detokenize", "Text of tokens"),
)
