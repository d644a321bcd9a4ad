"""A demo adapter merged into the real base, as transformers loads it, still speaks its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.catalog import Catalog
from demo.expectations import EXPECTATIONS, MAX_TOKENS, PROMPTS
from demo.train import ARTIFACTS, load_base
from quantize.merging.merge import merge


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_the_merged_model_answers_in_the_adapters_way(
    name: str, demo_base: Path, tmp_path: Path
) -> None:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("smol", demo_base)
        catalog.register(str(ARTIFACTS / name), name=name, base="smol")
        report = merge(catalog, name, tmp_path / "merged").report
    assert (report.dtype, report.warnings) == ("bfloat16", ())
    assert report.rounding.overall < 0.2
    model, tokenizer = load_base(tmp_path / "merged")
    for prompt in PROMPTS[:2]:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        answer = tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        shown = [other for other, shows in EXPECTATIONS.items() if shows(answer)]
        assert shown == [name], answer
