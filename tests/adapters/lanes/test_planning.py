"""What is asked of deployments and routes, against what there is."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import (
    AdapterctlError,
    Conflict,
    NotDeployed,
    NotHotServable,
    TagNotFound,
    UsageError,
    VersionNotFound,
)
from adapters.frozen import Lane
from adapters.jobs.orders import Calibration, EvaluateOptions, MergeOrder, QuantizeOptions
from adapters.lanes.models import Deployment, Shadow, Split
from adapters.lanes.planning import fits, planned_shadows, planned_splits, wanted_lane
from adapters.models import MergeRecord, TextQuality
from tests.adapters.lanes.records import adapter, deployment, version

RECORD = MergeRecord(
    requantize="awq",
    dtype="bfloat16",
    base_weights="original",
    bits=4,
    group_size=64,
    symmetric=False,
    samples=32,
    sample_tokens=512,
    seed=0,
    quality=(
        TextQuality(
            texts="general",
            perplexity=11.0,
            reference_perplexity=10.0,
            kl=0.02,
            kl_p99=0.2,
            agreement=0.95,
        ),
    ),
)


def order(**given: Any) -> MergeOrder:
    return MergeOrder(**{"reference": "bot:v3", "requantize": "awq", **given})


def calibrated(**given: Any) -> MergeOrder:
    return order(quantize=QuantizeOptions(calibration=Calibration(**given)))


@pytest.mark.parametrize(
    ("wanted", "fit"),
    [
        (order(), True),
        (order(requantize="none"), False),
        (order(requantize="gptq"), False),
        (order(dtype="bfloat16"), True),
        (order(dtype="float16"), False),
        (order(base_weights="dequantized"), False),
        (order(nf4_checkpoint="/nf4"), False),
        (order(quantize=QuantizeOptions(group_size=64)), True),
        (order(quantize=QuantizeOptions(group_size=128)), False),
        (order(quantize=QuantizeOptions(symmetric=True)), False),
        (calibrated(samples=32), True),
        (calibrated(samples=64), False),
        (calibrated(seed=1), False),
        (calibrated(path="/texts.jsonl"), False),
        (order(evaluate=EvaluateOptions()), True),
        (order(evaluate=EvaluateOptions(max_kl=0.05)), True),
        (order(evaluate=EvaluateOptions(max_kl=0.01)), False),
        (order(evaluate=EvaluateOptions(max_ppl_increase=0.2)), True),
        (order(evaluate=EvaluateOptions(max_ppl_increase=0.05)), False),
        (order(evaluate=EvaluateOptions(task="/task.jsonl")), True),
        (order(evaluate=EvaluateOptions(task="/task.jsonl", max_kl=0.05)), False),
    ],
)
def test_a_model_fits_what_an_order_says(wanted: MergeOrder, fit: bool) -> None:
    assert fits(wanted, RECORD) is fit


def test_quality_that_nobody_measured_fits_no_gate() -> None:
    unmeasured = RECORD.model_copy(update={"quality": ()})
    assert fits(order(), unmeasured)
    assert fits(order(evaluate=EvaluateOptions()), unmeasured)
    assert not fits(order(evaluate=EvaluateOptions(max_kl=9.0)), unmeasured)


def test_the_lane_that_is_wanted() -> None:
    hot, merged = version(3), version(5, lane=Lane.MERGED)
    assert wanted_lane(hot, None, None, None) is Lane.HOT
    assert wanted_lane(merged, None, None, None) is Lane.MERGED
    assert wanted_lane(hot, None, order(), None) is Lane.MERGED
    assert wanted_lane(hot, None, None, "big") is Lane.MERGED
    with pytest.raises(NotHotServable, match="it is a DoRA"):
        wanted_lane(merged, Lane.HOT, None, None)
    for lane, merge, model in (
        (Lane.HOT, order(), None),
        (Lane.HOT, None, "big"),
        (Lane.MERGED, order(), "big"),
        (Lane.MERGED, order(out="/out"), None),
        (Lane.MERGED, order(tag="prod"), None),
    ):
        with pytest.raises(UsageError):
            wanted_lane(hot, lane, merge, model)
    with pytest.raises(UsageError, match="is a merged model itself"):
        wanted_lane(version(1, lane=Lane.MERGED, method="merged-model"), Lane.MERGED, order(), None)


DEPLOYED = (
    deployment(1, None),
    deployment(3, Lane.HOT, model="sha256:m"),
    deployment(4, Lane.HOT, job="j"),
)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("v4=5%", Split(number=4, share=0.05)),
        ("latest=5%", Split(number=6, share=0.05)),
        (f"sha256:{4:064x}=5%", Split(number=4, share=0.05)),
        ("@merged=10%", Split(number=3, lane=Lane.MERGED, share=0.1, follows=True)),
        ("v3@merged=10%", Split(number=3, lane=Lane.MERGED, share=0.1, follows=True)),
        ("v4@merged=10%", Split(number=4, lane=Lane.MERGED, share=0.1)),
    ],
)
def test_texts_become_splits(text: str, split: Split) -> None:
    of = adapter(deployments=DEPLOYED)
    assert planned_splits(of, of.versions[3], [text], None) == (split,)
    # What came out goes in again.
    assert planned_splits(of, of.versions[3], [split], None) == (split,)


def test_a_header_alone_needs_no_share() -> None:
    of = adapter()
    (found,) = planned_splits(of, of.versions[3], ["v4"], ("X-Canary", "1"))
    assert found == Split(number=4, share=0, header=("x-canary", "1"))


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        (["v4"], UsageError, "Write v4=5%"),
        (["v4=0%"], UsageError, "gets nothing"),
        (["v3=5%"], UsageError, "means already"),
        (["prod=5%"], UsageError, "means already"),
        (["v4=60%", "v6=60%"], UsageError, "come to 120 %"),
        (["v4=5%", "v4=6%"], UsageError, "named twice"),
        (["v9=5%"], VersionNotFound, "has no version v9"),
        (["beta=5%"], TagNotFound, "has no tag 'beta'"),
        (["v1=5%"], NotDeployed, "adapterctl deploy bot:v1`"),
        (["v5=5%"], NotDeployed, "--lane merged"),
        (["v5@hot=5%"], NotHotServable, "it is a DoRA"),
        (["v6@merged=5%"], Conflict, "has no merged model"),
    ],
)
def test_splits_that_cannot_be(texts: list[str], error: type[AdapterctlError], words: str) -> None:
    of = adapter(deployments=DEPLOYED)
    with pytest.raises(error) as caught:
        planned_splits(of, of.versions[3], texts, None)
    assert words in caught.value.message


def test_a_header_decides_for_one_target() -> None:
    of = adapter()
    with pytest.raises(UsageError, match="one target"):
        planned_splits(of, of.versions[3], ["v4=5%", "v6=5%"], ("x-canary", "1"))
    with pytest.raises(UsageError, match="secrets"):
        planned_splits(of, of.versions[3], ["v4=5%"], ("Authorization", "1"))


def test_another_base_has_no_engine_here() -> None:
    other = version(4).model_copy(update={"base_digest": "sha256:" + "c" * 64})
    of = adapter(versions={3: version(3), 4: other})
    with pytest.raises(Conflict, match="for another base"):
        planned_splits(of, of.versions[3], ["v4=5%"], None)


def test_shadows() -> None:
    known: tuple[Deployment, ...] = DEPLOYED
    of = adapter(deployments=known)
    stable = of.versions[3]
    assert planned_shadows(of, stable, ["v4=10%", "@merged=5%"]) == (
        Shadow(number=4, share=0.1),
        Shadow(number=3, lane=Lane.MERGED, share=0.05, follows=True),
    )
    for texts in (["v4"], ["v4=0%"], ["v3=5%"], ["v4=5%", "v4=6%"]):
        with pytest.raises(UsageError):
            planned_shadows(of, stable, texts)
    with pytest.raises(NotDeployed):
        planned_shadows(of, stable, ["v1=5%"])
