"""Scenarios: which load is put on a server. `loadtests/scenarios.toml` holds those that ship."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from adapters.errors import UsageError
from adapters.frozen import Frozen

SHIPPED = Path(__file__).with_name("scenarios.toml")
ONLY_TENANT = "default"

Count = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Share = Annotated[float, Field(ge=0, le=1)]


class Uniform(Frozen):
    """Each of the adapters as likely as any other. `count` None: all that there are."""

    pick: Literal["uniform"] = "uniform"
    count: Count | None = None


class Zipf(Frozen):
    """The adapter of rank k with a probability proportional to k^-exponent."""

    pick: Literal["zipf"]
    count: Count | None = None
    exponent: Annotated[float, Field(gt=0, le=10)] = 1.0


class OneHot(Frozen):
    """The first adapter takes `share` of the requests, the others the rest between them."""

    pick: Literal["one-hot"]
    count: Annotated[int, Field(ge=2, le=100_000)] | None = None
    share: Share = 0.9


class InTurn(Frozen):
    """One after the other, around: the worst there is for a cache that drops the least recent."""

    pick: Literal["in-turn"]
    count: Count | None = None


class Cold(Frozen):
    """Every adapter asked for the first time, then `again` times more right after it."""

    pick: Literal["cold"]
    count: Count | None = None
    again: Annotated[int, Field(ge=0, le=100)] = 1


class Shares(Frozen):
    """The first adapters with the shares given, which add up to 1: a canary, split by the client.

    With one share of 1 the server's own route splits; what answered is read from its headers.
    """

    pick: Literal["shares"]
    shares: Annotated[tuple[Share, ...], Field(min_length=1, max_length=100)]

    @property
    def count(self) -> int:
        return len(self.shares)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(self.shares):g}, not to 1")
        return self


class BaseOnly(Frozen):
    """No adapter: the base under its own name."""

    pick: Literal["base"]

    @property
    def count(self) -> int:
        return 0


Choice = Annotated[
    Uniform | Zipf | OneHot | InTurn | Cold | Shares | BaseOnly, Field(discriminator="pick")
]


class Closed(Frozen):
    """So many users, each of whom asks again once answered and `pause` seconds later."""

    kind: Literal["closed"] = "closed"
    users: Annotated[int, Field(ge=1, le=10_000)]
    pause: Seconds = 0.0


class Rate(Frozen):
    """Requests that arrive whether or not earlier ones were answered: `rate` a second.

    At most `most` are under way at once; what then has to wait is late by the load generator's
    fault, and its latency counts from when it should have been sent.
    """

    kind: Literal["rate"]
    rate: Annotated[float, Field(gt=0, le=10_000)]
    spacing: Literal["poisson", "even"] = "poisson"
    most: Annotated[int, Field(ge=1, le=10_000)] = 256

    @property
    def users(self) -> int:
        return self.most


Load = Annotated[Closed | Rate, Field(discriminator="kind")]


class Between(Frozen):
    """A number of tokens drawn anew for each request, both ends included."""

    low: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}")
        return self


def _shape(value: object) -> str:
    return "between" if isinstance(value, Mapping | Between) else "number"


Tokens = Annotated[
    Annotated[PositiveInt, Tag("number")] | Annotated[Between, Tag("between")],
    Discriminator(_shape),
]


class Tenant(Frozen):
    """Who asks, how often, and what, where it differs from the scenario's own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    load: Load
    begin: Seconds = Field(0.0, description="Seconds after the start at which it begins to ask.")
    adapters: Choice | None = None
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class Scenario(Frozen):
    """A load. The name is the table's in the file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    about: str = ""
    seed: int = 0
    endpoint: Literal["chat", "completions"] = "chat"
    adapters: Choice = Uniform()
    prompt_tokens: Tokens = 128
    output_tokens: Tokens = 64
    shared_prefix: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="Tokens at the prompt's beginning that all of a tenant's prompts share."
    )
    load: Load | None = None
    tenants: tuple[Tenant, ...] = ()
    duration: Seconds | None = Field(None, description="Seconds measured, the warm-up not counted.")
    requests: Count | None = Field(None, description="Requests measured, in place of a duration.")
    warmup: Seconds | None = Field(None, description="Seconds left out, with a duration.")
    warmup_requests: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Requests left out, with a number of requests."
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0
    body: dict[str, JsonValue] = Field(
        default={"ignore_eos": True, "temperature": 0},
        description="Further fields of each request's body, passed on as they are.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.load is None) == (not self.tenants):
            raise ValueError("exactly one of load and tenants has to be given")
        if (self.duration is None) == (self.requests is None):
            raise ValueError("exactly one of duration and requests has to be given")
        if self.duration == 0:
            raise ValueError("duration has to be above 0")
        if self.warmup is not None and self.duration is None:
            raise ValueError("warmup (seconds) goes with duration; with requests: warmup_requests")
        if self.warmup_requests is not None and self.requests is None:
            raise ValueError("warmup_requests goes with requests; with duration: warmup (seconds)")
        if self.requests is not None and len(self.tenants) > 1:
            raise ValueError("requests counts one tenant's; with several, give a duration")
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError("two tenants have one name")
        late = [t.name for t in self.tenants if self.end is not None and t.begin >= self.end]
        if late:
            raise ValueError(f"tenant {late[0]} begins after the end")
        return self

    @property
    def askers(self) -> tuple[Tenant, ...]:
        """The tenants; one of its own where the scenario has only a load."""
        if self.load is not None:
            return (Tenant(name=ONLY_TENANT, load=self.load),)
        return self.tenants

    @property
    def warmup_seconds(self) -> float:
        return self.warmup or 0.0

    @property
    def end(self) -> float | None:
        """Seconds from the start, warm-up included, at which nobody asks any more."""
        return None if self.duration is None else self.warmup_seconds + self.duration

    def choice(self, tenant: Tenant) -> Choice:
        """How the tenant chooses among the adapters."""
        return tenant.adapters or self.adapters

    @property
    def adapters_needed(self) -> int | None:
        """How many adapters it takes at least; None: all that there are, and one at least."""
        counts = [self.choice(tenant).count for tenant in self.askers]
        known = [count for count in counts if count is not None]
        return None if len(known) < len(counts) else max(known)


def load_scenarios(path: Path = SHIPPED) -> dict[str, Scenario]:
    """All scenarios of a file by name. Raises UsageError on anything wrong, in one line."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the scenarios {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the scenarios {path} are not valid TOML: {error}") from None
    return {name: parse(name, table) for name, table in tables.items()}


def parse(name: str, table: object) -> Scenario:
    """One scenario. Raises UsageError on anything wrong, in one line."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{name} is no scenario: a scenario is a table, [{name}]")
    if "name" in table:
        raise UsageError(f"scenario {name}: name is the table's own; take the key name out")
    return _checked(name, {**table, "name": name})


def find(name: str, path: Path = SHIPPED) -> Scenario:
    """The scenario `name` of a file. Raises UsageError, with the names that there are."""
    scenarios = load_scenarios(path)
    if name not in scenarios:
        raise UsageError(f"no scenario {name} in {path.name}; there are {', '.join(scenarios)}")
    return scenarios[name]


def changed(
    scenario: Scenario,
    *,
    duration: float | None = None,
    requests: int | None = None,
    adapters: int | None = None,
    users: int | None = None,
    rate: float | None = None,
    seed: int | None = None,
) -> Scenario:
    """The scenario with what is not None in place of its own, checked as a file is.

    `duration` takes the place of a number of requests, and the other way around; `adapters` is how
    many there are to choose from; `users` and `rate` change the load of a scenario with one tenant.
    """
    table = scenario.model_dump(mode="json")
    if duration is not None:
        table |= {"duration": duration, "requests": None, "warmup_requests": None}
    if requests is not None:
        table |= {"requests": requests, "duration": None, "warmup": None}
    if seed is not None:
        table["seed"] = seed
    if adapters is not None:
        table["adapters"] = _with_count(scenario.adapters, adapters)
        if isinstance(scenario.adapters, Cold) and scenario.requests and requests is None:
            table["requests"] = adapters * (1 + scenario.adapters.again)
    if users is not None or rate is not None:
        if scenario.load is None:
            raise UsageError(f"scenario {scenario.name} has tenants: change their loads in a file")
        load = scenario.load.model_dump(mode="json")
        load |= {("most" if "most" in load else "users"): users} if users is not None else {}
        load |= {"rate": rate} if rate is not None else {}
        table["load"] = load
    return _checked(scenario.name, table)


def _with_count(choice: Choice, count: int) -> dict[str, Any]:
    if isinstance(choice, Shares) and count == 1:
        return {"pick": "shares", "shares": [1.0]}
    if isinstance(choice, Shares | BaseOnly):
        raise UsageError(f"the number of adapters of pick = {choice.pick!r} is not to be changed")
    return {**choice.model_dump(mode="json"), "count": count}


def _checked(name: str, table: Mapping[str, Any]) -> Scenario:
    try:
        return Scenario.model_validate(table)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such key"
        told = f"{place}: {message}" if place else message
        raise UsageError(" ".join(f"scenario {name}: {told}".split())) from None
