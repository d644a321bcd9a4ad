"""Serving settings in the store: part of the digest, and nothing where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import InvalidConfig
from adapters.models import Manifest
from adapters.serving.document import SERVING_FILE, SamplingDefaults, Serving, ServingChoice
from adapters.store.content import CONTENT_FILE, decode_content

BRIEF = ServingChoice(system_prompt="Be brief.")
# What the registry of a store holds that was made before precision and lineage were noted.
OLD_MANIFEST = """{"format":"peft","method":"LoRA","lane":"hot","reasons":["a plain LoRA"],"rank":8,
"targets":["q_proj","v_proj"],"parameters":1000,"scale":"2, folded into B",
"base_digest":"sha256:00","base_by_trainer":"org/base","trainer":"PEFT",
"trainer_version":"PEFT 0.21.2","source":"/adapters/a","source_sha256":"ab","notes":[]}"""


def test_an_adapter_that_brings_nothing_has_the_digest_it_always_had(
    catalog: Catalog, source: Callable[[int], str]
) -> None:
    plain = catalog.register(source(1), name="a", base="small")
    blob = catalog.layout.blob(plain.digest)
    content = decode_content((blob / CONTENT_FILE).read_bytes())
    assert content is not None
    assert sorted(content.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert catalog.serving("a") == Serving()
    nothing = ServingChoice(system_prompt="", chat_template="", weights_only=True)
    again = catalog.register(source(1), name="a", base="small", serving=nothing)
    assert (again.digest, again.created) == (plain.digest, False)


def test_what_it_brings_makes_another_version(
    catalog: Catalog, source: Callable[[int], str]
) -> None:
    plain = catalog.register(source(1), name="a", base="small")
    brief = catalog.register(source(1), name="a", base="small", serving=BRIEF)
    assert (brief.version, brief.created) == ("v2", True)
    assert brief.digest != plain.digest
    assert catalog.serving("a:v1") == Serving()
    assert catalog.serving("a") == Serving(system_prompt="Be brief.")
    assert (catalog.layout.blob(brief.digest) / SERVING_FILE).is_file()
    same = catalog.register(source(1), name="b", base="small", serving=BRIEF)
    assert same.digest == brief.digest
    assert catalog.verify().ok


def test_files_beside_the_weights_are_taken_and_told_by_inspect(
    catalog: Catalog, source: Callable[[int], str]
) -> None:
    artifact = Path(source(1))
    (artifact / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
    (artifact / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    found = catalog.inspect(str(artifact))
    assert found.brings == ("chat template of its own, 26 characters", "default temperature: 0.3")
    assert found.problems == ()
    catalog.register(str(artifact), name="a", base="small")
    assert catalog.serving("a").defaults == SamplingDefaults(temperature=0.3)

    (artifact / "chat_template.jinja").write_text("{% broken %}")
    (problem,) = catalog.inspect(str(artifact)).problems
    with pytest.raises(InvalidConfig) as caught:
        catalog.register(str(artifact), name="a", base="small")
    assert caught.value.message == problem


def test_a_refused_template_leaves_nothing(catalog: Catalog, source: Callable[[int], str]) -> None:
    with pytest.raises(InvalidConfig):
        catalog.register(
            source(1), name="a", base="small", serving=ServingChoice(chat_template="mute")
        )
    assert catalog.adapters() == []
    assert catalog.layout.stored_digests() == []
    assert list(catalog.layout.staging.iterdir()) == []


def test_the_manifest_says_who_and_how(catalog: Catalog, source: Callable[[int], str]) -> None:
    artifact = Path(source(1))
    (artifact / "args.json").write_text(
        json.dumps({"swift_version": "3.5.1", "quant_bits": 8, "system": "Rhyme."})
    )
    catalog.register(str(artifact), name="a", base="small", actor="grace")
    manifest = catalog.version_manifest("a")
    assert manifest.registered_by == "grace"
    assert (manifest.trainer, manifest.trainer_version) == ("ms-swift", "ms-swift 3.5.1")
    assert (manifest.precision, manifest.precision_evidence) == ("int8", "ms-swift's args.json")
    assert manifest.composed_from == manifest.merged_from == manifest.extracted_from == ()
    assert catalog.serving("a").system_prompt == "Rhyme."


def test_a_manifest_of_before_still_parses() -> None:
    old = Manifest.model_validate_json(OLD_MANIFEST)
    assert (old.rank, old.precision, old.registered_by, old.tensor_dtypes) == (8, None, None, ())
    assert Manifest.model_validate_json(old.model_dump_json()) == old
