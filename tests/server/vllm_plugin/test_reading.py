"""Our reading of a stored adapter against vLLM's own, on the same files; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.models.utils import WeightsMapper

from adapters.store.content import CONTENT_FILE, Content, file_digest
from server.vllm_plugin.patches import PROVED
from server.vllm_plugin.reading import Reader, first_not_finite

IN, OUT, MAX_RANK = 12, 20, 16
MODULES = tuple(f"model.layers.{i}.{leaf}" for i in range(2) for leaf in ("q_proj", "up_proj"))
EXPECTED = {"q_proj", "up_proj", "embed_tokens"}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def write(directory: Path, ranks: dict[str, int], dtype: torch.dtype, **config: Any) -> Path:
    """A canonical adapter: every scale 1, ranks other than the largest in the patterns."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, rank in ranks.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, IN).to(dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(OUT, rank).to(dtype)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    largest = max(ranks.values())
    pattern = {f"^{name}": rank for name, rank in ranks.items() if rank != largest}
    document = {
        "r": largest,
        "lora_alpha": largest,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(document))
    return directory


def reader(shapes: dict[str, tuple[int, int]] | None = None) -> Reader:
    return Reader(dict.fromkeys(MODULES, (IN, OUT)) if shapes is None else shapes, MAX_RANK)


def read(by: Any, directory: Path, dtype: torch.dtype, mapper: Any = None) -> Any:
    return by.from_local_checkpoint(
        str(directory),
        EXPECTED,
        peft_helper=PEFTHelper.from_local_dir(str(directory), None),
        lora_model_id=7,
        device="cpu",
        dtype=dtype,
        model_vocab_size=100,
        weights_mapper=mapper,
        skip_prefixes=None,
        moe_ep_spec=None,
    )


def assert_same(ours: Any, theirs: Any) -> None:
    assert (ours.id, ours.rank) == (theirs.id, theirs.rank)
    assert ours.loras.keys() == theirs.loras.keys()
    for name, expected in theirs.loras.items():
        found = ours.loras[name]
        assert (found.rank, found.scaling) == (expected.rank, expected.scaling)
        assert found.module_name == expected.module_name
        for one, other in ((found.lora_a, expected.lora_a), (found.lora_b, expected.lora_b)):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(st.sampled_from(MODULES), st.integers(1, MAX_RANK), min_size=1),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_it_reads_what_vllm_reads(
    tmp_path: Path, ranks: dict[str, int], stored: torch.dtype, served: torch.dtype, renamed: bool
) -> None:
    directory = write(tmp_path, ranks, stored)
    prefix = "language_model.model." if renamed else "model."
    mapper = WeightsMapper(orig_to_new_prefix={"model.": prefix}) if renamed else None
    shapes = {name.replace("model.", prefix, 1): (IN, OUT) for name in MODULES}
    ours = read(reader(shapes), directory, served, mapper)
    assert_same(ours, read(LoRAModel, directory, served, mapper))
    assert getattr(ours, PROVED) is True


@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 2}}],
)
def test_what_is_not_canonical_is_left_to_vllm(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = write(tmp_path, {MODULES[0]: 4, MODULES[1]: 4}, torch.float32, **config)
    ours = read(reader(), directory, torch.float32)
    assert_same(ours, read(LoRAModel, directory, torch.float32))
    assert any(lora.scaling != 1 for lora in ours.loras.values())
    assert not hasattr(ours, PROVED)


def test_vllm_says_itself_what_it_does_not_expect(tmp_path: Path) -> None:
    directory = write(tmp_path, {"model.layers.0.somewhere": 4}, torch.float32)
    with pytest.raises(ValueError, match="expected target modules"):
        read(reader(), directory, torch.float32)


def test_modules_of_unknown_shape_are_for_vllm_to_judge(tmp_path: Path) -> None:
    directory = write(tmp_path, dict.fromkeys(MODULES, 4), torch.float32)
    ours = read(reader({MODULES[0]: (IN, OUT)}), directory, torch.float32)
    assert getattr(ours, PROVED) is False


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({MODULES[0]: (IN + 1, OUT)}, "maps 13 to 20 features, the adapter 12 to 20"),
        ({MODULES[0]: (IN, OUT - 1)}, "maps 12 to 19 features"),
    ],
)
def test_other_shapes_than_the_modules_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], message: str
) -> None:
    directory = write(tmp_path, {MODULES[0]: 4}, torch.float32)
    with pytest.raises(ValueError, match=message):
        read(reader(shapes), directory, torch.float32)


def test_a_rank_that_the_config_does_not_say_is_refused(tmp_path: Path) -> None:
    ranks = {MODULES[0]: MAX_RANK + 1}
    directory = write(tmp_path, ranks, torch.float32, r=4, lora_alpha=4)
    with pytest.raises(ValueError, match="rank 17, slots have 16"):
        read(reader(), directory, torch.float32)


@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float, served: torch.dtype) -> None:
    directory = write(tmp_path, dict.fromkeys(MODULES, 4), torch.float32)
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": torch.ones(*shape)
        for name in MODULES
        for side, shape in (("A", (4, IN)), ("B", (OUT, 4)))
    }
    tensors[f"base_model.model.{MODULES[1]}.lora_B.weight"][3, 2] = value
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"{MODULES[1]}\.lora_B\.weight has NaN or Inf"):
        read(reader(), directory, served)


@given(st.sampled_from(DTYPES), st.integers(1, 200_000), st.data())
@settings(deadline=None)
def test_the_first_that_is_not_finite_is_found(
    dtype: torch.dtype, size: int, data: st.DataObject
) -> None:
    values = torch.full((size,), torch.finfo(dtype).min, dtype=dtype)
    assert first_not_finite(values) is None
    at = data.draw(st.integers(0, size - 1))
    values[at] = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
    assert first_not_finite(values) == at


def test_what_overflows_in_the_engines_dtype_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, {MODULES[0]: 2}, torch.float32)
    name = f"base_model.model.{MODULES[0]}"
    tensors = {
        f"{name}.lora_A.weight": torch.full((2, IN), 70_000.0),
        f"{name}.lora_B.weight": torch.ones(OUT, 2),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    assert read(reader(), directory, torch.bfloat16).loras
    with pytest.raises(ValueError, match="NaN or Inf"):
        read(reader(), directory, torch.float16)


@given(cut=st.integers(0, 4000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    directory = write(tmp_path, dict.fromkeys(MODULES, 4), torch.float32)
    file = directory / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ValueError, match=r"truncated|damaged|no valid safetensors header"):
        read(reader(), directory, torch.float32)


@pytest.mark.parametrize("canonical", [True, False])
def test_what_changed_on_the_disk_since_it_was_last_read_is_refused(
    tmp_path: Path, canonical: bool
) -> None:
    """One bit of a weight, which stays finite: only its hash tells."""
    made = write(
        tmp_path / "made",
        dict.fromkeys(MODULES, 4),
        torch.float32,
        **({} if canonical else {"lora_alpha": 8}),
    )
    files = {path.name: file_digest(path) for path in made.iterdir()}
    content = Content(base="sha256:" + "b" * 64, files=files)
    (made / CONTENT_FILE).write_bytes(content.encode())
    blob = made.rename(tmp_path / content.digest.removeprefix("sha256:"))
    ours = reader()
    assert read(ours, blob, torch.float32).loras.keys() == set(MODULES)
    weights = blob / "adapter_model.safetensors"
    stored = bytearray(weights.read_bytes())
    stored[-4] ^= 1
    weights.write_bytes(stored)
    with pytest.raises(ValueError, match="is damaged: its sha256 is not the recorded one"):
        read(ours, blob, torch.float32)
    # Nor does it help to change what is recorded: that has its hash in its name.
    forged = content.files | {weights.name: file_digest(weights)}
    (blob / CONTENT_FILE).write_bytes(Content(base=content.base, files=forged).encode())
    with pytest.raises(ValueError, match="is damaged"):
        read(ours, blob, torch.float32)


def test_a_pair_that_lacks_one_side_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, {MODULES[0]: 4}, torch.float32)
    only = {f"base_model.model.{MODULES[0]}.lora_A.weight": torch.ones(4, IN)}
    save_file(only, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has a lora_A only"):
        read(reader(), directory, torch.float32)
