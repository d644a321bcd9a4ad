"""Table B: more adapters than slots, and tenants beside each other, through the gateway.

The loads are those of loadtests/scenarios.toml, so that each can be repeated by hand against any
server: `python -m loadtests.run NAME --url URL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from adapters.errors import AdapterctlError, ToolFailed
from demo.prepare import BASE_NAME
from loadtests.adapters import ATTENTION, make_store
from loadtests.compare.bars import Bar, Row, Table, at_least, at_most, middle, ratio
from loadtests.compare.session import Session
from loadtests.live import LiveServer
from loadtests.reporting.summary import Figures, Summary
from loadtests.running import run
from loadtests.scenarios import Scenario, changed, find

SLOTS = 8
MANY = 1000
# Of those that are asked one after the other for the first time, in each of the loads.
COLD = 16
TENANT_HEADER = "x-tenant"
FULL, OVER = "8 adapters", "16 adapters"
ONE, ZIPF = "1 adapter", "all adapters"
COLD_FIRST, WARM_FIRST = "cold", "warm"
ALONE, BESIDE = "quiet alone", "quiet beside the flood"

Samples = dict[str, list[float]]


def measure(session: Session) -> Table:
    """Everything of table B on one server; a load that fails has rows without figures."""
    folder = session.place("scheduling")
    many = 100 if session.quick else MANY
    session.say(f"scheduling: registering {many} adapters of rank 4 and {COLD} more of rank 16")
    store = folder / "store"
    zipf = make_store(store, count=many, rank=4, targets=ATTENTION, prefix="many", say=session.say)
    working = make_store(store, count=2 * SLOTS, prefix="set", say=session.say)
    cold = make_store(store, count=COLD * session.loads, prefix="cold", say=session.say)
    samples: Samples = {}
    notes: list[str] = []
    try:
        with serving(store) as url:
            loads = _Loads(session, url, samples, notes)
            # First, while nothing else is in the engine's memory.
            loads.part("cold adapters", lambda: loads.cold(cold))
            loads.part("16 adapters on 8 slots", lambda: loads.slots(working))
            loads.part(f"Zipf over {many:,}", lambda: loads.zipf(zipf))
            loads.part("noisy neighbour", lambda: loads.noisy(working))
    except ToolFailed as fault:
        notes.append(fault.message)
    return Table(
        key="scheduling",
        title="B. More adapters than slots, through the gateway",
        load=_load(session, many),
        rows=rows(samples),
        notes=tuple(notes),
        samples=samples,
    )


@contextmanager
def serving(store: Path) -> Iterator[str]:
    """`adapterctl serve` with 8 slots on the store; its URL."""
    live = LiveServer(
        store,
        *("--base", BASE_NAME, "--port", "0", "--slots", str(SLOTS)),
        # No other process imports vLLM for the next engine while this one is measured.
        *("--engine-start", "fork", "--tenant-header", TENANT_HEADER),
    )
    try:
        live.start()
    except AssertionError as fault:
        raise ToolFailed(f"the server did not start: {str(fault).splitlines()[-1]}") from fault
    try:
        yield live.url
    finally:
        live.stop()


class _Loads:
    def __init__(self, session: Session, url: str, samples: Samples, notes: list[str]) -> None:
        self._session, self._url = session, url
        self._samples, self._notes = samples, notes

    def part(self, what: str, work: Callable[[], None]) -> None:
        """One bar's loads; what goes wrong is noted, and the others are measured all the same."""
        self._session.say(f"scheduling: {what}")
        try:
            work()
        except AdapterctlError as fault:
            self._session.say(f"scheduling: {what}: {fault.message}")
            self._notes.append(f"{what}: {fault.message}")

    def slots(self, names: Sequence[str]) -> None:
        """As many adapters as slots, then twice as many, in turn."""
        duration, few = (10, 5) if self._session.quick else (30, 10)
        base = _warmed(find("over-slots"), few)
        sides = {
            FULL: (changed(base, adapters=SLOTS, duration=duration), names[:SLOTS]),
            OVER: (changed(base, adapters=2 * SLOTS, duration=duration), names),
        }
        self._in_turn(sides)

    def zipf(self, names: Sequence[str]) -> None:
        """One adapter, then all of them by Zipf's law, in turn."""
        duration, few = (10, 5) if self._session.quick else (35, 10)
        base = _warmed(find("zipf"), few)
        sides = {
            ONE: (changed(base, adapters=1, duration=duration), names[:1]),
            ZIPF: (changed(base, adapters=len(names), duration=duration), names),
        }
        self._in_turn(sides)

    def _in_turn(self, sides: dict[str, tuple[Scenario, Sequence[str]]]) -> None:
        for number in range(self._session.loads):
            order = sides if number % 2 == 0 else dict(reversed(sides.items()))
            for told, (scenario, models) in order.items():
                # Other adapters and prompts each round, the same for both sides.
                found = self._run(changed(scenario, seed=number), models, told)
                self._add(f"first token: {told}", found.all.ttft_ms.p50)
                self._add(f"throughput: {told}", found.all.output_tokens_per_second)

    def cold(self, names: Sequence[str]) -> None:
        """Every adapter once for the first time and once more; others in every load."""
        scenario = changed(find("cold"), adapters=COLD)
        for number in range(self._session.loads):
            models = names[number * COLD : (number + 1) * COLD]
            found = self._run(changed(scenario, seed=number), models, "cold adapters")
            self._add(f"first token: {COLD_FIRST}", found.first_requests.ttft_ms.p50)
            self._add(f"first token: {WARM_FIRST}", found.later_requests.ttft_ms.p50)

    def noisy(self, names: Sequence[str]) -> None:
        """A tenant alone, and the same beside another's 50 requests at once."""
        # The flood begins after 35 seconds, the warm-up among them.
        duration = 45 if self._session.quick else 70
        scenario = changed(find("noisy-neighbour"), duration=duration)
        for number in range(self._session.loads):
            found = self._run(changed(scenario, seed=number), names[:2], "noisy neighbour", True)
            first, last = found.phases[0].by_tenant["quiet"], found.phases[-1].by_tenant["quiet"]
            self._add(f"first token: {ALONE}", _sound(first).ttft_ms.p50)
            self._add(f"first token: {BESIDE}", _sound(last).ttft_ms.p50)

    def _run(
        self, scenario: Scenario, models: Sequence[str], told: str, refusals: bool = False
    ) -> Summary:
        """`refusals`: that some are refused is a part of the load."""
        number = len(self._samples.get(f"first token: {told}", ())) + 1
        self._session.say(f"scheduling: {told}, {number} of {self._session.loads}")
        found = run(scenario, self._url, models=models, base=BASE_NAME, tenant_header=TENANT_HEADER)
        rate, first = found.all.output_tokens_per_second, found.all.ttft_ms.p50
        self._session.say(
            f"  {found.all.ok} answered, {found.all.errors} not; "
            f"{rate:.0f} tokens/s, first token {0 if first is None else first:.0f} ms (p50)"
        )
        for error in found.errors:
            self._session.say(f"  {error.count} × {error.message[:200]}")
        if found.all.errors and not refusals:
            told = found.errors[0].message[:200] if found.errors else "no reason given"
            raise ToolFailed(f"{found.all.errors} requests failed: {told}")
        return found

    def _add(self, name: str, value: float | None) -> None:
        if value is None:
            raise ToolFailed(f"nothing was answered ({name})")
        self._samples.setdefault(name, []).append(value)


def _warmed(scenario: Scenario, seconds: float) -> Scenario:
    return scenario.model_copy(update={"warmup": seconds})


def _sound(figures: Figures) -> Figures:
    """A tenant that keeps to its share must not be refused."""
    if figures.errors:
        raise ToolFailed(f"{figures.errors} requests of the quiet tenant failed")
    return figures


def rows(samples: Samples) -> tuple[Row, ...]:
    """The table's rows, of whatever was measured. The cold bar is on what 1.3 times a warm first
    token and 50 ms come to."""

    def first(name: str) -> str:
        return f"first token: {name}"

    def rate(name: str) -> str:
        return f"throughput: {name}"

    def compared(title: str, over: str, under: str, unit: str, bar: Bar | None) -> Row:
        figures = _figures(samples, over, under, unit)
        return Row(title, ratio(samples, over, under), figures, bar)

    def first_token(title: str, over: str, under: str, bar: Bar | None = None) -> Row:
        return compared(title, first(over), first(under), "ms", bar)

    def throughput(title: str, over: str, under: str, bar: Bar) -> Row:
        return compared(title, rate(over), rate(under), "tokens/s", bar)

    cold = [
        c / (1.3 * w + 50)
        for c, w in zip(
            samples.get(first(COLD_FIRST), ()), samples.get(first(WARM_FIRST), ()), strict=False
        )
    ]
    return (
        first_token("first token, 16 adapters on 8 slots : 8 on 8", OVER, FULL, at_most(2.0)),
        throughput("throughput, 16 adapters on 8 slots : 8 on 8", OVER, FULL, at_least(0.8)),
        throughput("throughput, Zipf over all : one adapter", ZIPF, ONE, at_least(0.6)),
        first_token("first token, Zipf over all : one adapter", ZIPF, ONE),
        Row(
            "first token, cold : (1.3 × warm + 50 ms)",
            median(cold) if cold else None,
            _figures(samples, first(COLD_FIRST), first(WARM_FIRST), "ms, cold : warm"),
            at_most(1.0),
        ),
        first_token("first token, quiet tenant beside 50 : alone", BESIDE, ALONE, at_most(2.5)),
    )


def _figures(samples: Samples, over: str, under: str, unit: str) -> str:
    values = [middle(samples, name) for name in (over, under)]
    shown = ["-" if value is None else f"{value:.0f}" for value in values]
    return "" if values == [None, None] else f"{shown[0]} : {shown[1]} {unit}"


def _load(session: Session, many: int) -> str:
    told = [_told(find(name)) for name in ("over-slots", "zipf", "cold", "noisy-neighbour")]
    return (
        f"`adapterctl serve --slots {SLOTS}`, chat requests, streamed, of other words each. "
        f"Working sets, rank 16 on all linear layers: {told[0]}. Zipf over {many:,} registered, "
        f"rank 4 on the attention's: {told[1]}. Cold: {COLD} never asked for since the server's "
        f"start, rank 16, {told[2]}. Tenants: {told[3]}; quiet asks 0.5 times a second, at first "
        f"alone, then beside 50 requests at once. In turn, medians of {session.loads} ratios."
    )


def _told(scenario: Scenario) -> str:
    """Its size in words, from the scenario itself."""
    load = scenario.load
    users = f"{load.users} at once, " if load is not None else ""
    return f"{users}{scenario.prompt_tokens} tokens in, {scenario.output_tokens} out"
