"""--approximate on a store and over the admin API: never unasked, and never without the word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def tuned(tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full fine-tune of the tiny base: its first adapter (r = 4) merged, in bf16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, tiny.first).merge_and_unload()
    folder = tmp_path_factory.mktemp("tuned")
    merged.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["store", "server"])
def cli(
    request: pytest.FixtureRequest, tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    store = tmp_path_factory.mktemp("approximate") / "store"
    on_store = CommandLine(("--store", str(store)))
    on_store.ok("init")
    on_store.ok("base", "add", "tiny", str(tiny.base))
    if request.param == "store":
        yield on_store
        return
    with admin_server(store) as url:
        yield CommandLine(("--server", url))


def test_a_full_fine_tune_both_ways(cli: CommandLine, tuned: Path) -> None:
    source = str(tuned)
    found = cli.ok("inspect", source)
    assert (found["format"], found["method"]) == ("full", "full-fine-tune")
    assert (found["lane"], found["approximate"], found["approximation"]) == ("merged", False, None)
    assert found["problems"] == []
    exact = cli.ok("register", source, "--name", "exact", "--base", "tiny")
    assert (exact["lane"], exact["approximate"], exact["rank"]) == ("merged", False, None)

    near = cli.ok("inspect", source, "--approximate", "auto")
    assert (near["lane"], near["approximate"], near["rank"]) == ("hot", True, 4)
    assert near["approximation"]["requested"] == "auto"
    made = cli.ok("register", source, "--name", "near", "--base", "tiny", "--approximate", "auto")
    assert (made["lane"], made["approximate"], made["rank"]) == ("hot", True, 4)
    assert "approximate" in made["reasons"][0]
    shown = cli.ok("show", "near")
    assert shown["approximate"] is True
    figures = shown["manifest"]["approximation"]
    assert {item["rank"] for item in figures["modules"]} == {4}
    assert 0.99 < figures["energy"] < 1
    assert figures["error"] == pytest.approx((1 - figures["energy"]) ** 0.5)
    assert figures["extracted_from"] == shown["manifest"]["source_sha256"]
    listed = {row["name"]: (row["lane"], row["approximate"]) for row in cli.ok("ls")}
    assert listed == {"exact": ("merged", False), "near": ("hot", True)}

    cli.ok("register", source, "--name", "near", "--base", "tiny", "--approximate", "2")
    low = cli.ok("show", "near")["manifest"]["approximation"]
    assert (low["requested"], low["worst"]["rank"]) == (2, 2)
    assert low["error"] > figures["error"]


def test_what_cannot_be_asked(cli: CommandLine, tuned: Path, tiny: TinyArtifacts) -> None:
    asked = ("--name", "x", "--base", "tiny", "--approximate")
    for source, rank in ((tuned, "0"), (tuned, "600"), (tuned, "much"), (tiny.first, "auto")):
        code, error = cli.refused("register", str(source), *asked, rank)
        assert (code, error["code"]) == (2, "usage"), error
