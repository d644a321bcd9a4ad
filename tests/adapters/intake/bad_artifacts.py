"""Every artifact that must be refused, as a builder against any base with Llama's module names.

`BAD[name](folder, base)` writes the artifact into the empty `folder`; `error` is the class that
registering raises and `says` are parts of its sentence. Holds everything that engines take with
"Success" and then serve wrongly, and what plain LoRA cannot express.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.errors import (
    AmbiguousFormat,
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
    SourceUnreadable,
    UnknownFormat,
    UnsafePickle,
)
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import (
    PREFIX,
    Q0,
    Q0_A,
    Q0_B,
    WEIGHTS,
    Build,
    CallOnLoad,
    as_pickle,
    beyond_layers,
    deflated,
    done,
    dropped,
    edited,
    expanded_pickle,
    half_pickle,
    moved_to,
    renamed,
    set_value,
    two_adapters,
    two_spellings,
    with_bytes,
    with_config,
    with_config_text,
    with_extra,
    with_files,
    with_tensor,
    without_key,
    zero_all_b,
)


@dataclass(frozen=True)
class Bad:
    """A bad artifact; calling it writes it. `inside` is the folder to register, if not the root."""

    build: Build
    error: type[ArtifactError]
    says: tuple[str, ...]
    inside: str = "."

    def __call__(self, folder: Path, base: BaseDescriptor) -> None:
        self.build(folder, base)


_HANG = "(.*?){1,30}(.*?){1,30}[!?]"

BAD: dict[str, Bad] = {
    # Taken with "Success" by an engine and then served wrongly, or as the bare base.
    "q-a-100-inputs": Bad(
        with_tensor(Q0_A, lambda t: t[:, : t.shape[1] - 3]), BaseMismatch, (Q0_A, "inputs")
    ),
    "q-b-100-outputs": Bad(
        with_tensor(Q0_B, lambda t: t[: t.shape[0] - 3]), BaseMismatch, (Q0_B, "outputs")
    ),
    "q-b-missing-in-one-layer": Bad(
        dropped(Q0_B), DamagedArtifact, (Q0_A, "no lora_B", "half of the pair")
    ),
    "q-a-missing-in-one-layer": Bad(dropped(Q0_A), DamagedArtifact, (Q0_B, "no lora_A")),
    "layer-77": Bad(
        edited(beyond_layers), BaseMismatch, ("layers.77", "does not have", "has layers 0 to")
    ),
    "prefix-that-matches-nothing": Bad(
        renamed("base_model.model.model.", "base_model.model.language_model.model."),
        BaseMismatch,
        ("language_model.model.layers.0", "nearest one is 'model.layers.0", "more like it"),
    ),
    "feature-extraction-prefix": Bad(
        renamed("base_model.model.model.", "base_model.model."), BaseMismatch, ("nearest one is",)
    ),
    "config-rank-too-small": Bad(with_config(r=2), InvalidConfig, (".lora_A", "rank 4", "says 2")),
    "config-rank-too-large": Bad(with_config(r=8), InvalidConfig, (".lora_A", "rank 4", "says 8")),
    "rank-pattern-not-the-tensors": Bad(
        with_config(rank_pattern={"layers.0.self_attn.q_proj": 2}),
        InvalidConfig,
        (Q0_A, "rank 4", "says 2"),
    ),
    "nan-in-a": Bad(with_tensor(Q0_A, set_value(float("nan"))), DamagedArtifact, (Q0_A, "1 NaN")),
    "infinity-in-b": Bad(
        with_tensor(Q0_B, set_value(float("inf"))), DamagedArtifact, (Q0_B, "infinite")
    ),
    "alpha-0": Bad(with_config(lora_alpha=0), InvalidConfig, ("lora_alpha is 0", "no effect")),
    "vera-with-lora-keys": Bad(with_config(peft_type="VERA"), InvalidConfig, (".lora_A", "VeRA's")),
    "lora-ga": Bad(with_config(init_lora_weights="lora_ga"), NotHotServable, ("lora_ga",)),
    "pissa-init-directory": Bad(
        moved_to("pissa_init"), NotServable, ("pissa_init", "pissa_converted"), "pissa_init"
    ),
    "pissa-backup-directory": Bad(
        moved_to("pissa_backup"), NotServable, ("pissa_converted",), "pissa_backup"
    ),
    "swift-initial-model": Bad(
        moved_to("initial_model"), NotServable, ("converted/default",), "initial_model"
    ),
    # Half, empty or foreign.
    "a-layer-missing": Bad(
        dropped("layers.1."), DamagedArtifact, ("layers.1.", "no tensors for it")
    ),
    "target-module-missing": Bad(
        dropped("v_proj"), DamagedArtifact, ("v_proj", "no tensors for it")
    ),
    "tensors-not-targeted": Bad(
        with_config(target_modules=["q_proj"]), InvalidConfig, ("k_proj", "does not cover")
    ),
    "unknown-module": Bad(
        renamed("q_proj", "query"), BaseMismatch, ("query", "nearest one is", "q_proj")
    ),
    "unknown-tensor": Bad(
        with_extra(f"{PREFIX}mystery", torch.ones(2)), BaseMismatch, ("mystery",)
    ),
    "zero-size-zero-3": Bad(
        with_tensor(Q0_A, lambda _: torch.zeros(0)), DamagedArtifact, (Q0_A, "[0]", "ZeRO-3")
    ),
    "three-dimensions": Bad(
        with_tensor(Q0_A, lambda t: t[None]), DamagedArtifact, (Q0_A, "matrix")
    ),
    "integers": Bad(
        with_tensor(Q0_A, lambda t: t.to(torch.int8)), DamagedArtifact, (Q0_A, "I8", "F16, BF16")
    ),
    "every-b-zero": Bad(edited(zero_all_b), DamagedArtifact, ("lora_B", "before training")),
    "no-tensors": Bad(dropped("lora"), DamagedArtifact, ("no LoRA tensors",)),
    "two-spellings-of-one-tensor": Bad(
        edited(two_spellings), DamagedArtifact, ("both lora_A of", "one too many")
    ),
    "two-adapters-in-one-file": Bad(edited(two_adapters), DamagedArtifact, ("several adapters",)),
    "overflows-when-folded": Bad(
        with_config(lora_alpha=1e40), DamagedArtifact, ("lora_B", "alpha/r folded in", "too large")
    ),
    "truncated": Bad(with_bytes(lambda data: data[:-100]), DamagedArtifact, (WEIGHTS, "truncated")),
    "longer-than-it-says": Bad(
        with_bytes(lambda data: data + b"\0" * 8), DamagedArtifact, ("follow",)
    ),
    "empty-file": Bad(with_bytes(lambda _: b""), DamagedArtifact, (WEIGHTS, "is empty")),
    "forty-bytes": Bad(with_bytes(lambda data: data[:40]), DamagedArtifact, ("truncated",)),
    "header-not-json": Bad(
        with_bytes(lambda data: data[:8] + b"!" + data[9:]), DamagedArtifact, ("not JSON",)
    ),
    "header-of-any-length": Bad(
        with_bytes(lambda data: b"\xff" * 8 + data[8:]), DamagedArtifact, ("header should be",)
    ),
    # Pickles.
    "pickle-that-runs-code": Bad(
        as_pickle(lambda path: torch.save({Q0_A: CallOnLoad()}, path)),
        UnsafePickle,
        ("print", "safetensors"),
    ),
    "plain-pickle-that-runs-code": Bad(
        as_pickle(lambda path: done(path.write_bytes(pickle.dumps({Q0_A: CallOnLoad()})))),
        UnsafePickle,
        ("adapter_model.bin",),
    ),
    "pickle-that-explodes": Bad(as_pickle(deflated), UnsafePickle, ("compressed",)),
    "pickle-truncated": Bad(as_pickle(half_pickle), DamagedArtifact, ("truncated or damaged",)),
    "pickle-empty": Bad(as_pickle(lambda path: path.touch()), DamagedArtifact, ("is empty",)),
    "pickle-not-tensors": Bad(
        as_pickle(lambda path: torch.save({Q0_A: "text"}, path)), DamagedArtifact, ("str", Q0_A)
    ),
    "pickle-of-a-list": Bad(
        as_pickle(lambda path: torch.save([torch.ones(2)], path)), DamagedArtifact, ("list",)
    ),
    "pickle-expanded-tensor": Bad(expanded_pickle, BaseMismatch, (Q0_A, "inputs")),
    # The config.
    "no-config": Bad(
        with_files(lambda folder: (folder / "adapter_config.json").unlink()),
        InvalidConfig,
        ("no adapter_config.json",),
    ),
    "config-not-json": Bad(with_config_text("{r: 4"), InvalidConfig, ("not valid JSON",)),
    "config-not-an-object": Bad(with_config_text("[4]"), InvalidConfig, ("list",)),
    "config-enormous": Bad(with_config_text(" " * 10_000_001), InvalidConfig, ("larger than",)),
    "config-nested": Bad(with_config_text("[" * 200_000), InvalidConfig, ("not valid JSON",)),
    "config-key-twice": Bad(with_config_text('{"r": 4, "r": 8}'), InvalidConfig, ("'r'", "twice")),
    "no-rank": Bad(without_key("r"), InvalidConfig, ("no 'r'",)),
    "rank-0": Bad(with_config(r=0), InvalidConfig, ("r is 0",)),
    "rank-negative": Bad(with_config(r=-4), InvalidConfig, ("r is -4",)),
    "rank-true": Bad(with_config(r=True), InvalidConfig, ("r is True",)),
    "rank-4.0": Bad(with_config(r=4.5), InvalidConfig, ("r is 4.5",)),
    "rank-513": Bad(with_config(r=513), InvalidConfig, ("513", "go up to 512")),
    "no-alpha": Bad(without_key("lora_alpha"), InvalidConfig, ("no 'lora_alpha'",)),
    "alpha-negative": Bad(with_config(lora_alpha=-8), InvalidConfig, ("lora_alpha is -8",)),
    "alpha-nan": Bad(with_config(lora_alpha=float("nan")), InvalidConfig, ("finite number",)),
    "alpha-text": Bad(with_config(lora_alpha="8"), InvalidConfig, ("must be a number",)),
    "alpha-endless": Bad(with_config(lora_alpha=10**400), InvalidConfig, ("finite number",)),
    "alpha-pattern-0": Bad(
        with_config(alpha_pattern={"q_proj": 0}), InvalidConfig, ("alpha_pattern['q_proj'] is 0",)
    ),
    "pattern-that-hangs": Bad(
        with_config(alpha_pattern={_HANG: 8}), InvalidConfig, ("alpha_pattern", "takes too long")
    ),
    "pattern-that-is-none": Bad(
        with_config(rank_pattern={"(": 4}), InvalidConfig, ("rank_pattern", "no valid pattern")
    ),
    "targets-a-number": Bad(with_config(target_modules=7), InvalidConfig, ("target_modules",)),
    "no-peft-type": Bad(without_key("peft_type"), InvalidConfig, ("peft_type",)),
    "peft-type-unknown": Bad(with_config(peft_type="MAGIC"), InvalidConfig, ("MAGIC",)),
    # No plain LoRA, and not right as a merge either (bad_merges.py has more).
    "dora-by-config": Bad(
        with_config(use_dora=True), DamagedArtifact, ("no lora_magnitude_vector", "is missing")
    ),
    "dora-by-tensor": Bad(
        with_extra(f"{PREFIX}{Q0}.lora_magnitude_vector", torch.ones(8)),
        BaseMismatch,
        ("q_proj.lora_magnitude_vector", "must be"),
    ),
    "bias-by-tensor": Bad(
        with_extra(f"{PREFIX}{Q0}.bias", torch.ones(8)), BaseMismatch, ("q_proj.bias", "has none")
    ),
    "lora-bias": Bad(with_config(lora_bias=True), DamagedArtifact, ("lora_bias is true",)),
    "lora-bias-by-tensor": Bad(
        with_extra(f"{PREFIX}{Q0}.lora_B.bias", torch.ones(8)),
        NotServable,
        ("lora_B.bias", "none in this base"),
    ),
    "modules-to-save": Bad(
        with_config(modules_to_save=["lm_head"]), DamagedArtifact, ("covers 'lm_head.weight'",)
    ),
    "whole-norm": Bad(
        with_extra(f"{PREFIX}model.norm.weight", torch.ones(8)),
        BaseMismatch,
        ("model.norm.weight", "must be"),
    ),
    "trainable-tokens": Bad(
        with_config(trainable_token_indices=[0]),
        DamagedArtifact,
        ("names trainable tokens", "no trainable_tokens_delta"),
    ),
    "trainable-tokens-by-tensor": Bad(
        with_extra(
            f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(2, 8)
        ),
        InvalidConfig,
        ("trainable_tokens_delta", "does not say which"),
    ),
    "layer-replication": Bad(
        with_config(layer_replication=[[0, 2], [1, 3]]), NotServable, ("layer_replication",)
    ),
    "pissa": Bad(
        with_config(init_lora_weights="pissa_niter_16"), NotHotServable, ("pissa_niter_16",)
    ),
    "olora-without-the-base": Bad(
        with_config(init_lora_weights="OLoRA"), NotHotServable, ("OLoRA needs the base's own",)
    ),
    "pissa-without-the-base": Bad(
        with_config(init_lora_weights="pissa"), NotHotServable, ("PiSSA needs the base's own",)
    ),
    "corda": Bad(with_config(init_lora_weights="corda"), NotHotServable, ("corda",)),
    "loftq": Bad(with_config(init_lora_weights="loftq"), NotHotServable, ("loftq",)),
    "kasa-by-tensor": Bad(
        with_extra(f"{PREFIX}{Q0}.lora_diag", torch.ones(4)), InvalidConfig, ("no kasa_config",)
    ),
    "hra": Bad(with_config(peft_type="HRA"), InvalidConfig, ("none of HRA's",)),
    "adalora-by-tensor": Bad(
        with_extra(f"{PREFIX}{Q0}.lora_E", torch.ones(4, 1)),
        NotHotServable,
        ("another tuner", "lora_E"),
    ),
    "experts": Bad(
        with_extra(f"{PREFIX}model.layers.0.mlp.experts.0.w1.lora_A.weight", torch.ones(4, 8)),
        BaseMismatch,
        ("experts", "does not have"),
    ),
    "target-parameters": Bad(
        with_config(target_parameters=["mlp.experts.gate_up_proj"]),
        DamagedArtifact,
        ("mlp.experts.gate_up_proj", "no tensors"),
    ),
    # Nothing serves these.
    "activated-lora": Bad(
        with_config(alora_invocation_tokens=[1, 2]), NotServable, ("alora_invocation_tokens",)
    ),
    "prompt-tuning": Bad(with_config(peft_type="PROMPT_TUNING"), NotServable, ("prompt tuning",)),
    "x-lora": Bad(with_config(peft_type="XLORA"), NotServable, ("X-LoRA",)),
    "classifier": Bad(with_config(task_type="SEQ_CLS"), NotServable, ("SEQ_CLS", "CAUSAL_LM")),
    "value-head": Bad(
        with_extra("v_head.summary.weight", torch.ones(1, 8)),
        NotServable,
        ("reward model", "v_head"),
    ),
    "value-head-file": Bad(
        with_files(lambda folder: (folder / "value_head.safetensors").touch()),
        NotServable,
        ("value_head.safetensors",),
    ),
    # Not an adapter's directory.
    "not-there": Bad(lambda folder, base: None, SourceUnreadable, ("does not exist",), "gone"),
    "empty-directory": Bad(lambda folder, base: None, UnknownFormat, ("no files",)),
    "a-file": Bad(with_files(lambda folder: None), SourceUnreadable, ("is a file",), WEIGHTS),
    "no-weights": Bad(
        with_files(lambda folder: (folder / WEIGHTS).unlink()), DamagedArtifact, ("neither",)
    ),
    "checkpoints": Bad(
        moved_to("checkpoint-9", "checkpoint-100"), AmbiguousFormat, ("checkpoint-100",)
    ),
    "two-results": Bad(moved_to("english", "french"), AmbiguousFormat, ("english, french",)),
    "optimizer-state": Bad(
        moved_to("global_step12"), NotServable, ("optimizer state",), "global_step12"
    ),
}
