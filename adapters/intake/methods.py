"""What an artifact is mathematically: one row a method, recognised from tensors, then config.

The first row that recognises the artifact decides. Tensors come first everywhere: torchtune, for
one, writes DoRA magnitudes under a config that does not say DoRA. A new method is one row here
and one file with its `to_lora`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapters.errors import ArtifactError, InvalidConfig, NotHotServable, NotServable
from adapters.intake.adalora import plan_adalora
from adapters.intake.bdlora import plan_bdlora
from adapters.intake.delora import plan_delora
from adapters.intake.evidence import (
    Evidence,
    anything,
    either,
    init,
    key,
    miss_bat,
    mutated_base,
    other_task,
    other_tuner,
    tensor,
    tuner,
    value_head_file,
)
from adapters.intake.gralora import plan_gralora
from adapters.intake.loha import plan_loha
from adapters.intake.lokr import plan_lokr
from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.lora_merge import plan_lora_merge
from adapters.intake.merging import MergePlan
from adapters.intake.miss import plan_miss
from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.raw import RawAdapter
from adapters.intake.residual import plan_residual
from adapters.intake.sampled import plan_sampled
from adapters.intake.vblora import plan_vblora
from adapters.intake.vera import plan_vera
from adapters.models import BaseDescriptor, Lane


@dataclass(frozen=True, slots=True)
class Method:
    """A row: how a method shows, which lane it takes, and its plans or the refusal.

    `recognise` returns what gave it away (for the message) or None. `refusal` says why it is no
    plain LoRA; a row has either `refusal` or `to_lora`. With `to_merge` it is served in the merged
    lane, `refusal` being the reason (beside `to_lora`: where that finds it not hot, for its
    reason); a refusal without it is final. `limits` is for docs/formats.md.
    """

    name: str
    title: str
    recognise: Evidence
    lane: Lane | None
    refusal: str | None = None
    to_lora: Callable[[RawAdapter, BaseDescriptor], LoraPlan] | None = None
    to_merge: Callable[[RawAdapter, BaseDescriptor], MergePlan] | None = None
    limits: str = ""


_MERGE = "merge it into the base and serve the result"

METHODS: tuple[Method, ...] = (
    Method(
        "prompt-or-router",
        "a prompt or a router",
        either(other_tuner(Fate.NEVER), tensor(r"^prompt_embeddings$|adaption_(prompt|gate)")),
        None,
        Fate.NEVER.value,
    ),
    Method(
        "other-convertible",
        "another tuner",
        other_tuner(Fate.CONVERTIBLE),
        Lane.MERGED,
        f"{Fate.CONVERTIBLE.value}; until then {_MERGE}",
    ),
    Method(
        "other-merge",
        "another tuner",
        other_tuner(Fate.MERGE),
        Lane.MERGED,
        f"{Fate.MERGE.value}; {_MERGE}",
    ),
    Method(
        "alora",
        "an activated LoRA",
        key("alora_invocation_tokens"),
        None,
        "an activated LoRA starts at its invocation tokens only, which neither lane can do",
    ),
    Method(
        "arrow",
        "an Arrow router",
        key("arrow_config"),
        None,
        "Arrow routes between adapters by the input, which neither lane can do",
    ),
    Method(
        "reward-model",
        "a reward model",
        either(
            tensor(r"(^|\.)(v_head|value_head|score|classifier|classification_head)\."),
            value_head_file,
        ),
        None,
        "it is a value or classification head (a reward model), which produces scores and no text",
    ),
    Method(
        "other-task",
        "an adapter for another task",
        other_task,
        None,
        "only adapters for CAUSAL_LM produce text",
    ),
    Method(
        "full-fine-tune",
        "a full fine-tune",
        key("fine_tune_type", unless=("lora", "dora")),
        Lane.MERGED,
        f"it replaces whole weights of the base, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "dora",
        "DoRA",
        either(tensor(r"\.lora_magnitude_vector(\.|$)|\.magnitude(\.|$)"), key("use_dora")),
        Lane.MERGED,
        "DoRA rescales every row of the merged weight, which no plain LoRA expresses",
        to_merge=plan_lora_merge,
        limits="on an embedding from PEFT only; of torchtune its own file where q or k is tuned",
    ),
    Method(
        "kasa",
        "KaSA",
        either(tensor(r"\.lora_diag(\.|$)"), key("kasa_config")),
        Lane.MERGED,
        f"KaSA truncates the base's own weight, which is not supported yet; until then {_MERGE}",
    ),
    Method(
        "lora-bias",
        "LoRA with a bias",
        either(tensor(r"\.lora_(A|B)(\.[^.]+)?\.bias$"), key("lora_bias")),
        Lane.MERGED,
        "a bias on lora_B is added to the output, which a plain LoRA has no place for",
        to_merge=plan_lora_merge,
        limits="where the base's layer has a bias",
    ),
    Method(
        "trained-bias",
        "LoRA with trained biases",
        tensor(r"\.bias$"),
        Lane.MERGED,
        "it replaces biases of the base, which a plain LoRA has no place for",
        to_merge=plan_lora_merge,
    ),
    Method(
        "trainable-tokens",
        "LoRA with trainable tokens",
        either(tensor(r"trainable_tokens"), key("trainable_token_indices")),
        Lane.MERGED,
        "it replaces rows of the embedding, which no plain LoRA expresses",
        to_merge=plan_lora_merge,
        limits="with LoRA; of a tied base the embedding's rows, which are the head's too",
    ),
    Method(
        "modules-to-save",
        "LoRA with modules_to_save",
        either(tensor(r"\.modules_to_save\."), key("modules_to_save")),
        Lane.MERGED,
        "it replaces whole modules of the base, which no plain LoRA expresses",
        to_merge=plan_lora_merge,
        limits="beside LoRA and DoRA only; added tokens with their tokenizer",
    ),
    Method(
        "layer-replication",
        "LoRA with layer_replication",
        key("layer_replication"),
        None,
        "it was trained on a base whose layers are repeated, which is another model: save that "
        "model merged with the adapter and add it as a base of its own",
    ),
    Method("pissa", "PiSSA", init("pissa"), Lane.HOT, to_lora=plan_residual),
    Method("olora", "OLoRA", init("olora"), Lane.HOT, to_lora=plan_residual),
    Method(
        "pissa-like",
        "LoRA on a changed base",
        mutated_base,
        Lane.MERGED,
        "its factors belong to a base that this initialisation changed (fast PiSSA, CorDA, LoftQ, "
        "LoRA-GA), so on the original base they are wrong; save it with PEFT's "
        f"path_initial_model_for_weight_conversion, or {_MERGE}",
    ),
    Method(
        "qalora",
        "QA-LoRA",
        key("use_qalora"),
        Lane.MERGED,
        f"QA-LoRA's pooled lora_A is not supported yet; until then {_MERGE}",
    ),
    Method(
        "moe-experts",
        "LoRA on experts",
        either(tensor(r"\.experts\.|\.experts\.?lora_|\.switch_mlp\."), key("target_parameters")),
        Lane.MERGED,
        f"LoRA on the experts of a mixture is not supported yet; until then {_MERGE}",
    ),
    Method("adalora", "AdaLoRA", tuner("ADALORA"), Lane.HOT, to_lora=plan_adalora),
    Method("vera", "VeRA", tuner("VERA"), Lane.HOT, to_lora=plan_vera),
    Method("loha", "LoHa", tuner("LOHA"), Lane.HOT, to_lora=plan_loha),
    Method("lokr", "LoKr", tuner("LOKR"), Lane.HOT, to_lora=plan_lokr),
    Method(
        "miss-bat",
        "MiSS",
        miss_bat,
        Lane.MERGED,
        f"in this mode it multiplies the base's weight and so has full rank; {_MERGE}",
    ),
    Method("miss", "MiSS", tuner("MISS"), Lane.HOT, to_lora=plan_miss),
    Method("gralora", "GraLoRA", tuner("GRALORA"), Lane.HOT, to_lora=plan_gralora),
    Method("delora", "DeLoRA", tuner("DELORA"), Lane.HOT, to_lora=plan_delora),
    Method(
        "vblora-topk",
        "VB-LoRA",
        tensor(r"\.vblora_logits_[AB]_topk_"),
        Lane.MERGED,
        "only the chosen vectors were saved (save_only_topk_weights), which is not supported yet; "
        f"until then {_MERGE}",
    ),
    Method("vblora", "VB-LoRA", tuner("VBLORA"), Lane.HOT, to_lora=plan_vblora),
    Method(
        "other-tensors",
        "another tuner",
        tensor(
            r"\.(lora_E(\.|$)|gralora_|hada_|lokr_|vera_|ia3_l|oft_|boft_|miss_|hra_u|delora_|vblora_|c3a_|shira_)"
        ),
        Lane.MERGED,
        f"its tensors are of another tuner than the config says; {_MERGE}",
    ),
    Method("bdlora", "BD-LoRA", key("use_bdlora"), Lane.HOT, to_lora=plan_bdlora),
    Method(
        "monteclora",
        "MonteCLoRA",
        either(tensor(r"\.lora_monteclora_sampler(\.|$)"), key("monteclora_config")),
        Lane.HOT,
        to_lora=plan_sampled,
    ),
    Method(
        "velora",
        "VeLoRA",
        either(tensor(r"\.lora_velora_embed(\.|$)"), key("velora_config")),
        Lane.HOT,
        to_lora=plan_sampled,
    ),
    Method("rslora", "rsLoRA", key("use_rslora"), Lane.HOT, None, plan_lora, plan_lora_merge),
    Method("lora", "LoRA", anything, Lane.HOT, None, plan_lora, plan_lora_merge),
)


def recognise(raw: RawAdapter) -> tuple[Method, str]:
    """The artifact's method and what gave it away; raises InvalidConfig for an unknown tuner."""
    _check_peft_type(raw.config)
    for method in METHODS:
        evidence = method.recognise(raw)
        if evidence is not None:
            return method, evidence
    raise AssertionError("the table's last row takes everything")


def _check_peft_type(config: Any) -> None:
    kind = config.get("peft_type")
    if kind == "LORA" or str(kind) in PEFT_TYPES:
        return
    if kind is None:
        raise InvalidConfig(
            "adapter_config.json has no peft_type; PEFT writes one (LORA for a LoRA)"
        )
    raise InvalidConfig(
        f"adapter_config.json: peft_type {reprlib.repr(kind)} is no tuner of PEFT's"
    )


def method_name(method: Method, raw: RawAdapter) -> str:
    """The name for manifests: the tuner's own where a row stands for many."""
    kind = str(raw.config.get("peft_type"))
    return kind.lower() if kind in PEFT_TYPES else method.name


def _title(method: Method, raw: RawAdapter) -> str:
    kind = PEFT_TYPES.get(str(raw.config.get("peft_type")))
    return kind.title if kind else method.title


def why_merged(method: Method) -> str:
    """Why a method with `to_merge` is no plain LoRA, without what to do where it is refused."""
    assert method.refusal is not None, "a hot method says itself why it is not hot"
    return method.refusal.removesuffix(f"; {_MERGE}")


def refusal_of(method: Method, evidence: str, raw: RawAdapter) -> ArtifactError | None:
    """The error of a method that has no plan: NotHotServable, or NotServable without a lane."""
    if method.refusal is None or method.to_merge is not None:
        return None
    error = NotServable if method.lane is None else NotHotServable
    return error(f"this is {_title(method, raw)} ({evidence}): {method.refusal}")
