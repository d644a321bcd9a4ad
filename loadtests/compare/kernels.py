"""Table A: LoRA on the engine, by the engines asked directly with eight requests at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from adapters.errors import AdapterctlError
from demo.prepare import BASE_NAME
from loadtests.adapters import make_store
from loadtests.compare.asking import Asker
from loadtests.compare.bars import (
    Bar,
    Row,
    Table,
    at_least,
    at_most,
    middle,
    ratio,
    rotated,
)
from loadtests.compare.engines import COMPILED, OURS, PLAIN, STOCK, Engines
from loadtests.compare.peft_side import PEFT, measure_peft
from loadtests.compare.session import Session
from loadtests.compare.taking_turns import Turns

AT_ONCE = 8
PROMPT, SHORT_PROMPT = 256, 16
RANK, HIGH_RANK = 16, 64
# vLLM without LoRA compiles the model before it answers.
COMPILED_WITHIN = 240.0

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Asked:
    """One thing that is measured each round: which engine, and whom the eight requests ask."""

    name: str
    asker: Asker
    models: Sequence[str]

    @property
    def first(self) -> str:
        return f"first token: {self.name}"

    @property
    def rate(self) -> str:
        return f"decode: {self.name}"


def spread(models: Sequence[str]) -> list[str]:
    """The eight requests' models: `models` in turn, so that neighbours in the batch differ."""
    return [models[index % len(models)] for index in range(AT_ONCE)]


async def measure(session: Session) -> Table:
    """Everything of table A; a part whose engine fails has rows without figures."""
    folder = session.place("kernels")
    session.say("kernels: 8 adapters of rank 16 and 4 of rank 64")
    low = make_store(folder / "store", count=AT_ONCE, rank=RANK, say=session.say)
    high = make_store(folder / "store", count=4, rank=HIGH_RANK, prefix="high", say=session.say)
    samples: Samples = {}
    notes: list[str] = []

    async def part(what: str, work: Callable[[], Awaitable[None]]) -> None:
        session.say(f"kernels: {what}")
        try:
            await work()
        except AdapterctlError as fault:
            session.say(f"kernels: {what}: {fault.message}")
            notes.append(f"{what}: {fault.message}")

    engines = Engines(folder / "store", folder / "engines", slots=8, max_rank=RANK)
    taller = Engines(folder / "store", folder / "taller", slots=8, max_rank=HIGH_RANK)
    await part("ours and ours without LoRA", lambda: _ours(session, engines, low, samples))
    await part("stock vLLM", lambda: _stock(session, engines, low, samples))
    await part("rank 64", lambda: _ranks(session, taller, low, high, samples))
    await part("PEFT", lambda: measure_peft(session, folder / "store", low, samples))
    if not session.quick:
        await part("stock vLLM, compiled", lambda: _compiled(session, engines, samples))
    return Table(
        key="kernels",
        title="A. LoRA against the base, by the engine",
        load=(
            f"SmolLM2-135M in bf16, {AT_ONCE} requests at once, streamed, greedy; first token: "
            f"{PROMPT} prompt tokens, median of the eight; decode: {SHORT_PROMPT} prompt tokens, "
            f"{session.tokens} output tokens each, all output over all time. LoRA on all linear "
            f"layers. Interleaved on an engine, medians of {session.rounds} rounds."
        ),
        rows=rows(samples),
        notes=(*_explained(session), *notes),
        samples=samples,
    )


async def _ours(session: Session, engines: Engines, low: list[str], samples: Samples) -> None:
    """Adapters and base on one engine; then base requests with and without LoRA by two engines in
    turns: what is compared are percents, and minutes apart one and the same differs by more."""
    async with engines.up(OURS) as ours:
        names = [engines.name(OURS, name) for name in low]
        base = Asked("base", ours, spread([BASE_NAME]))
        asked = [
            base,
            Asked("1 adapter", ours, spread(names[:1])),
            Asked("4 adapters", ours, spread(names[:4])),
            Asked("8 adapters", ours, spread(names)),
        ]
        await _rounds(session, asked, samples, session.rounds)
        async with engines.up(PLAIN) as plain:
            pair = [
                replace(base, name="base in turns"),
                Asked("without LoRA", plain, spread([BASE_NAME])),
            ]
            await _in_turns(session, pair, samples, 6 * session.rounds)


async def _in_turns(
    session: Session, asked: Sequence[Asked], samples: Samples, rounds: int
) -> None:
    """Rounds of engines that are all up, each stopped while another one is measured; every third
    round has first tokens as well, which differ less."""
    turns = Turns([one.asker.session for one in asked])
    for one in asked:
        await one.asker.decode(one.models, SHORT_PROMPT, 4, f"warm {one.name}")
    with turns.begun():
        for number in range(rounds):
            session.say(f"kernels: round {number + 1} of {rounds}, in turns")
            for one in asked if number % 2 else asked[::-1]:
                with turns.of(one.asker.session):
                    # Caches and clocks are another engine's.
                    await one.asker.decode(one.models, SHORT_PROMPT, 4, f"wake {number}")
                    seed = f"{one.name} turn {number}"
                    await _measured(one, samples, session.tokens, seed, first=number % 3 == 0)


async def _measured(one: Asked, samples: Samples, tokens: int, seed: str, *, first: bool) -> None:
    if first:
        seconds = await one.asker.first_token(one.models, PROMPT, f"{seed} first")
        samples.setdefault(one.first, []).append(seconds)
    rate = await one.asker.decode(one.models, SHORT_PROMPT, tokens, seed)
    samples.setdefault(one.rate, []).append(rate)


async def _stock(session: Session, engines: Engines, low: list[str], samples: Samples) -> None:
    """Two rounds (quick: one, and not the mixed ones) are minutes of it."""
    async with engines.up(STOCK, low) as stock:
        kinds = {"1 adapter": low[:1], "4 adapters": low[:4]}
        asked = [Asked("stock vLLM, base", stock, spread([BASE_NAME]))]
        for told, models in list(kinds.items())[: 1 if session.quick else 2]:
            asked.append(Asked(f"stock vLLM, {told}", stock, spread(models)))
        await _rounds(session, asked, samples, 1 if session.quick else 2)


async def _ranks(
    session: Session, engines: Engines, low: list[str], high: list[str], samples: Samples
) -> None:
    async with engines.up(OURS) as ours:
        names = {
            "rank 16, 1 adapter": low[:1],
            "rank 64, 1 adapter": high[:1],
            "rank 16, 4 adapters": low[:4],
            "rank 64, 4 adapters": high[:4],
        }
        asked = [
            Asked(told, ours, spread([engines.name(OURS, model) for model in models]))
            for told, models in names.items()
        ]
        await _rounds(session, asked, samples, session.rounds, first=False)


async def _compiled(session: Session, engines: Engines, samples: Samples) -> None:
    """Its default without LoRA, which takes minutes of a C++ compiler at the first start."""
    async with engines.up(COMPILED, within=COMPILED_WITHIN) as compiled:
        asked = [Asked(COMPILED, compiled, spread([BASE_NAME]))]
        await _rounds(session, asked, samples, 3)


async def _rounds(
    session: Session,
    asked: Sequence[Asked],
    samples: Samples,
    rounds: int,
    *,
    tokens: int | None = None,
    first: bool = True,
) -> None:
    """Each once unmeasured (adapters are loaded, kernels are chosen), then in turns."""
    tokens = tokens or session.tokens
    by_name = {one.name: one for one in asked}
    for one in asked:
        await one.asker.decode(one.models, SHORT_PROMPT, 4, f"warm {one.name}")
    for number in range(rounds):
        session.say(f"kernels: round {number + 1} of {rounds}: {', '.join(by_name)}")
        for name in rotated(list(by_name), number):
            one = by_name[name]
            # "8 adapters" has no bar for its first token.
            if first and name != "8 adapters":
                seconds = await one.asker.first_token(one.models, PROMPT, f"{name} {number} first")
                samples.setdefault(one.first, []).append(seconds)
        for name in rotated(list(by_name), number):
            one = by_name[name]
            rate = await one.asker.decode(one.models, SHORT_PROMPT, tokens, f"{name} {number}")
            samples.setdefault(one.rate, []).append(rate)


def rows(samples: Samples) -> tuple[Row, ...]:
    """The table's rows, bars first, of whatever was measured."""

    def first(title: str, over: str, under: str, bar: Bar | None = None) -> Row:
        return _row(samples, title, f"first token: {over}", f"first token: {under}", "s", bar)

    def decode(title: str, over: str, under: str, bar: Bar | None = None) -> Row:
        return _row(samples, title, f"decode: {over}", f"decode: {under}", "tokens/s", bar)

    found = [
        first("first token, 1 adapter : base", "1 adapter", "base", at_most(1.10)),
        first("first token, 4 mixed : base", "4 adapters", "base", at_most(1.15)),
        first(
            "first token, 1 adapter, stock vLLM : ours",
            "stock vLLM, 1 adapter",
            "1 adapter",
            at_least(8.0),
        ),
        first(
            "first token, 4 mixed, stock vLLM : ours",
            "stock vLLM, 4 adapters",
            "4 adapters",
            # A run that is only to show that all works leaves it out.
            at_least(8.0) if "first token: stock vLLM, 4 adapters" in samples else None,
        ),
        decode("decode, 1 adapter : base", "1 adapter", "base", at_least(0.85)),
        decode("decode, 4 mixed : base", "4 adapters", "base", at_least(0.75)),
        decode("decode, 8 mixed : base", "8 adapters", "base", at_least(0.70)),
        decode(
            "decode, base : engine without LoRA", "base in turns", "without LoRA", at_least(0.97)
        ),
        _faster(samples, "first token, engine without LoRA : base", at_least(0.97)),
        decode(
            "decode, 4 mixed, rank 64 : rank 16",
            "rank 64, 4 adapters",
            "rank 16, 4 adapters",
            at_least(0.80),
        ),
        decode(
            "decode, 1 adapter, rank 64 : rank 16",
            "rank 64, 1 adapter",
            "rank 16, 1 adapter",
            at_least(0.80),
        ),
        first("first token, base, stock vLLM : ours", "stock vLLM, base", "base"),
        decode("decode, base, ours : stock vLLM", "base", "stock vLLM, base"),
        decode(
            "decode, 1 adapter, ours : stock vLLM",
            "1 adapter",
            "stock vLLM, 1 adapter",
        ),
        decode(
            "decode, 4 mixed, ours : stock vLLM",
            "4 adapters",
            "stock vLLM, 4 adapters",
        ),
        first(f"first token, {COMPILED} without LoRA : our base", COMPILED, "base"),
        decode(f"decode, our base : {COMPILED} without LoRA", "base", COMPILED),
        first(f"first token, base, {PEFT} : ours", f"{PEFT}, base", "base"),
        first(f"first token, 4 mixed, {PEFT} : ours", f"{PEFT}, 4 adapters", "4 adapters"),
        decode(f"decode, base, ours : {PEFT}", "base", f"{PEFT}, base"),
        decode(f"decode, 1 adapter, ours : {PEFT}", "1 adapter", f"{PEFT}, 1 adapter"),
        decode(f"decode, 4 mixed, ours : {PEFT}", "4 adapters", f"{PEFT}, 4 adapters"),
    ]
    return tuple(row for row in found if row.bar is not None or row.measured is not None)


def _row(samples: Samples, title: str, over: str, under: str, unit: str, bar: Bar | None) -> Row:
    return Row(title, ratio(samples, over, under), _figures(samples, over, under, unit), bar)


def _faster(samples: Samples, title: str, bar: Bar) -> Row:
    """Prefill of base requests, as a speed: the bar is on requests, not on decode alone."""
    return _row(samples, title, "first token: without LoRA", "first token: base in turns", "s", bar)


def _figures(samples: Samples, over: str, under: str, unit: str) -> str:
    """`3.41 : 3.02 s`, each side's median."""
    values = [middle(samples, name) for name in (over, under)]
    digits = 2 if unit == "s" else 0
    shown = ["-" if value is None else f"{value:.{digits}f}" for value in values]
    return "" if values == [None, None] else f"{shown[0]} : {shown[1]} {unit}"


def _explained(session: Session) -> list[str]:
    stock = "one round" if session.quick else "two rounds"
    return [
        "Engine without LoRA: ours with the same settings and no adapters, eager like the one "
        "with LoRA. Both are up, one of them stopped while the other is measured, for six times as "
        "many rounds. Of all others one engine is up at a time.",
        "Stock vLLM: the same model, flags and bound of a step, VLLM_PLUGINS empty; "
        f"{stock} only, since a round of first tokens takes it half a minute.",
        "Rank 64 is compared on an engine whose slots hold rank 64, rank 16 on the same one.",
        f"{PEFT}: one process, batches of eight made by hand, no server, no scheduling; first "
        "token is one forward pass with a sampled token, 4 mixed is `adapter_names`.",
    ]
