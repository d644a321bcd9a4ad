"""Which request comes when: a function of the scenario's seed alone, not of the server's speed.

Every tenant has a sequence of its own; its item i is the same in every run, so that two servers
are asked for the same adapters in the same order, however fast they are.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from loadtests.scenarios import (
    BaseOnly,
    Choice,
    Cold,
    InTurn,
    OneHot,
    Rate,
    Scenario,
    Shares,
    Tenant,
    Tokens,
    Zipf,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One request: tokens are what is wanted, the server counts its own way."""

    tenant: str
    index: int
    model: str
    prompt_tokens: int
    output_tokens: int


class TenantPlan:
    """The sequence of one tenant's requests."""

    def __init__(
        self, scenario: Scenario, tenant: Tenant, models: Sequence[str], base: str | None
    ) -> None:
        self.tenant = tenant
        self._scenario = scenario
        self._choice = scenario.choice(tenant)
        count = self._choice.count
        self._models = tuple(models if count is None else models[:count])
        self._base = base
        self._prompt = tenant.prompt_tokens or scenario.prompt_tokens
        self._output = tenant.output_tokens or scenario.output_tokens
        self._ends = tuple(itertools.accumulate(weights(self._choice, len(self._models))))
        self.warmup_requests = scenario.warmup_requests or 0

    def item(self, index: int) -> Item:
        """Request number `index`, from 0 on, those of the warm-up first."""
        random = Random(f"{self._scenario.seed}/{self.tenant.name}/{index}")
        return Item(
            self.tenant.name,
            index,
            self._model(index, random),
            _drawn(self._prompt, random),
            _drawn(self._output, random),
        )

    def _model(self, index: int, random: Random) -> str:
        # Drawn in any case: lengths do not depend on how the adapter is chosen.
        point = random.random()
        choice = self._choice
        if isinstance(choice, BaseOnly):
            assert self._base is not None
            return self._base
        if isinstance(choice, Cold):
            measured = index - self.warmup_requests
            if measured < 0:
                # No adapter may be warm when its turn comes. Without a base the last one is; its
                # measured requests then count as later ones.
                return self._base or self._models[-1]
            return self._models[measured // (1 + choice.again) % len(self._models)]
        if isinstance(choice, InTurn):
            return self._models[index % len(self._models)]
        found = bisect(self._ends, point * self._ends[-1])
        return self._models[min(found, len(self._models) - 1)]

    def arrivals(self) -> Iterator[float]:
        """Seconds from the start at which the requests of a rate are due, without end."""
        load = self.tenant.load
        assert isinstance(load, Rate)
        random = Random(f"{self._scenario.seed}/{self.tenant.name}/arrivals")
        due = self.tenant.begin
        while True:
            yield due
            due += random.expovariate(load.rate) if load.spacing == "poisson" else 1 / load.rate


def weights(choice: Choice, count: int) -> list[float]:
    """How often each of `count` adapters is chosen, in proportion."""
    if isinstance(choice, Zipf):
        return [(rank + 1) ** -choice.exponent for rank in range(count)]
    if isinstance(choice, OneHot) and count > 1:
        return [choice.share] + [(1 - choice.share) / (count - 1)] * (count - 1)
    if isinstance(choice, Shares):
        return list(choice.shares[:count])
    return [1.0] * count


def _drawn(tokens: Tokens, random: Random) -> int:
    return tokens if isinstance(tokens, int) else random.randint(tokens.low, tokens.high)
