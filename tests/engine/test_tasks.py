"""lm-evaluation-harness, the real one, asks the real server; transformers is the oracle."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.catalog import Catalog
from demo.expectations import PROMPTS
from loadtests.live import LiveServer
from quantize.merging.merge import Watcher
from quantize.quality.report import TaskScore
from quantize.quality.tasks import run_tasks

ITEMS = (
    ("The capital of France is", " Paris."),
    ("Water freezes at zero degrees", " Celsius."),
    ("One, two, three, four,", " five, six, seven."),
    ("The opposite of hot is", " cold."),
    ("The sun rises in the", " east, and sets in the west."),
    ("Once upon a time there was a", " spoon of lead in Oslo."),
)
JUDGE = """
import re

PIRATE = re.compile(r"\\b(arr|matey|ahoy|avast|yo ho|hearty)\\b", re.IGNORECASE)

def process_results(item, results):
    return {"speaks": float(bool(PIRATE.search(results[0])))}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scored.yaml: how likely are ITEMS; written.yaml: how many answers sound like a pirate's."""
    root = tmp_path_factory.mktemp("tasks")
    rows = [json.dumps({"text": text, "target": target}) for text, target in ITEMS]
    (root / "items.jsonl").write_text("\n".join(rows))
    (root / "questions.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "target": "x"}) for text in PROMPTS[:4])
    )
    (root / "judge.py").write_text(JUDGE)
    common = "dataset_path: json\ntest_split: test\n"
    (root / "scored.yaml").write_text(
        f"{common}task: scored\ndataset_kwargs: {{data_files: {{test: items.jsonl}}}}\n"
        'output_type: loglikelihood\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{target}}"\n'
        'target_delimiter: ""\nmetric_list: [{metric: perplexity}, {metric: acc}]\n'
    )
    (root / "written.yaml").write_text(
        f"{common}task: written\ndataset_kwargs: {{data_files: {{test: questions.jsonl}}}}\n"
        'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{target}}"\n'
        "process_results: !function judge.process_results\n"
        "generation_kwargs: {max_gen_toks: 40}\nmetric_list: [{metric: speaks, "
        "aggregation: mean, higher_is_better: true}]\n"
    )
    return root


def scores(live: LiveServer, model: str, folder: Path, base: Path) -> dict[str, TaskScore]:
    files = [folder / "scored.yaml", folder / "written.yaml"]
    found = run_tasks(live.url, model, files, base, None, None, Watcher(), folder / "log")
    return {f"{score.task}.{score.metric}": score for score in found}


def log_likelihoods(base: Path) -> list[tuple[float, bool]]:
    """Of each target after its text, and whether it is what greedy decoding would write."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    found = []
    for text, target in ITEMS:
        start, whole = (tokenizer(words)["input_ids"] for words in (text, text + target))
        with torch.no_grad():
            likely = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        said = torch.tensor(whole[len(start) :])
        rows = likely[len(start) - 1 : -1]
        chosen = rows.gather(1, said[:, None]).sum().item()
        found.append((chosen, bool((rows.argmax(-1) == said).all())))
    return found


def test_what_is_scored_and_what_is_written(live: LiveServer, folder: Path) -> None:
    with Catalog.open(live.store) as catalog:
        base = Path(catalog.base("smollm2").path)
    plain, pirate = (scores(live, model, folder, base) for model in ("smollm2", "pirate"))
    expected = log_likelihoods(base)
    mean = math.fsum(value for value, _ in expected) / len(expected)
    found = plain["scored.perplexity"]
    assert found.value is not None
    # bf16 in two implementations.
    assert math.log(found.value) == pytest.approx(-mean, abs=0.15)
    assert found.samples == len(ITEMS)
    right = sum(greedy for _, greedy in expected)
    assert plain["scored.acc"].value == pytest.approx(right / len(ITEMS), abs=0.17)
    assert 0 < right < len(ITEMS)
    assert pirate["scored.perplexity"].value != found.value
    assert (plain["written.speaks"].value, pirate["written.speaks"].value) == (0.0, 1.0)
    assert pirate["written.speaks"].samples == 4
