"""The engine's routes that clients may use, and what the gateway must know of each.

A literal table: what is not in it does not reach the engine. Loading and unloading adapters,
sleeping, profiling and vLLM's other administrative routes are not for clients.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.gateway.serving import CHAT, COMPLETION, MESSAGES, PROMPT, RESPONSES, Dialect


@dataclass(frozen=True, slots=True)
class EngineRoute:
    """A route passed through: `path` here, `engine_path` there.

    `usage_option`: a stream tells its usage only when asked by `stream_options`.
    `dialect`: what its body calls things, where a version's own settings are filled in.
    `computes`: the model works for it, so that it needs a place at the engine.
    """

    path: str
    engine_path: str
    summary: str
    usage_option: bool = False
    dialect: Dialect | None = None
    computes: bool = True


ENGINE_ROUTES: tuple[EngineRoute, ...] = (
    EngineRoute("/v1/chat/completions", "/v1/chat/completions", "Chat completion", True, CHAT),
    EngineRoute("/v1/completions", "/v1/completions", "Text completion", True, COMPLETION),
    EngineRoute("/v1/responses", "/v1/responses", "Response", dialect=RESPONSES),
    EngineRoute(
        "/v1/embeddings", "/v1/embeddings", "Embeddings, where the base has them", dialect=PROMPT
    ),
    EngineRoute("/v1/messages", "/v1/messages", "Message (Anthropic's shape)", dialect=MESSAGES),
    EngineRoute(
        "/v1/tokenize", "/tokenize", "Tokens of a text or chat", dialect=PROMPT, computes=False
    ),
    EngineRoute("/v1/detokenize", "/detokenize", "Text of tokens", computes=False),
    # Where vLLM itself has them; its clients look there.
    EngineRoute(
        "/tokenize", "/tokenize", "Tokens of a text or chat", dialect=PROMPT, computes=False
    ),
    EngineRoute("/detokenize", "/detokenize", "Text of tokens", computes=False),
)
