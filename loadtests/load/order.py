"""What the process that runs a scenario hands to the one that generates its load (on stdin)."""

from __future__ import annotations

from typing import Any

from adapters.frozen import Frozen
from loadtests.load.plan import Item
from loadtests.load.prompts import Prompts, Sizing
from loadtests.scenarios import Scenario

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Order(Frozen):
    """One run. `url` has no /v1 at its end; `headers` are by tenant, keys included: no file."""

    scenario: Scenario
    url: str
    models: tuple[str, ...]
    base: str | None
    headers: dict[str, dict[str, str]]
    sizing: Sizing
    prompt_seed: int

    @property
    def path(self) -> str:
        return PATHS[self.scenario.endpoint]

    def prompts(self) -> Prompts:
        return Prompts(self.sizing, self.prompt_seed, self.scenario.shared_prefix)

    def body(self, item: Item, prompts: Prompts) -> dict[str, Any]:
        """The request's body, as OpenAI's API has it, with the scenario's further fields."""
        text = prompts.text(item.tenant, item.index, item.prompt_tokens)
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": text}]}
            if self.scenario.endpoint == "chat"
            else {"prompt": text}
        )
        return {
            "model": item.model,
            **asked,
            "max_tokens": item.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.scenario.body,
        }
