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
from adapters.intake.deft import plan_deft
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
    pvera_sampling,
    tensor,
    tuner,
    value_head_file,
)
from adapters.intake.gralora import plan_gralora
from adapters.intake.hra import plan_hra
from adapters.intake.kasa import plan_kasa
from adapters.intake.loha import plan_loha
from adapters.intake.lokr import plan_lokr
from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.merging import MergePlan
from adapters.intake.miss import plan_miss
from adapters.intake.peanut import plan_peanut
from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.qalora import plan_qalora
from adapters.intake.raw import RawAdapter
from adapters.intake.residual import plan_residual
from adapters.intake.sampled import plan_sampled
from adapters.intake.tinylora import plan_tinylora
from adapters.intake.trainable_tokens import plan_tokens, without_tokens
from adapters.intake.unilora import plan_unilora
from adapters.intake.vblora import plan_vblora
from adapters.intake.vera import plan_pvera, plan_vera
from adapters.models import BaseDescriptor, Lane


@dataclass(frozen=True, slots=True)
class Method:
    """A row: how a method shows, which lane it takes, and its plans or the refusal.

    `recognise` returns what gave it away (for the message) or None. `refusal` says why it is no
    plain LoRA; a row has either `refusal` or `to_lora`. With `to_merge` it is served in the merged
    lane, `refusal` being the reason; without, it is refused. `limits` is for docs/formats.md.
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


def _with_tokens(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """Trained rows, and what they came with by its own row."""
    if raw.config.get("peft_type") == "TRAINABLE_TOKENS":
        return plan_tokens(raw, base, None)
    rest = without_tokens(raw)
    method, evidence = recognise(rest)
    if method.to_lora is None:
        # A row that is merged has a reason and no refusal.
        refusal = refusal_of(method, evidence, rest) or NotHotServable(
            f"this is {_title(method, rest)} ({evidence}): {method.refusal}"
        )
        return LoraPlan(pairs=(), scale="", problems=(refusal,), notes=())
    return plan_tokens(raw, base, method.to_lora(rest, base))


METHODS: tuple[Method, ...] = (
    Method(
        "prompt-or-router",
        "a prompt or a router",
        either(other_tuner(Fate.NEVER), tensor(r"^prompt_embeddings$|adaption_(prompt|gate)")),
        None,
        Fate.NEVER.value,
    ),
    Method(
        "other-merge",
        "another tuner",
        other_tuner(Fate.MERGE),
        Lane.MERGED,
        f"{Fate.MERGE.value}; {_MERGE}",
    ),
    Method(
        "psoft",
        "PSOFT",
        other_tuner(Fate.UNSAVED),
        None,
        f"{Fate.UNSAVED.value}; merge it with PEFT where it was trained, on that machine",
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
        f"DoRA rescales every row of the merged weight, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "lora-bias",
        "LoRA with a bias",
        either(tensor(r"\.lora_(A|B)(\.[^.]+)?\.bias$"), key("lora_bias")),
        Lane.MERGED,
        f"a bias on lora_B is added to the output, which a plain LoRA has no place for; {_MERGE}",
    ),
    Method(
        "trained-bias",
        "LoRA with trained biases",
        either(tensor(r"\.bias$"), key("bias", unless=("none",))),
        Lane.MERGED,
        f"it replaces biases of the base, which a plain LoRA has no place for; {_MERGE}",
    ),
    Method(
        "trainable-tokens",
        "LoRA with trainable tokens",
        either(
            tuner("TRAINABLE_TOKENS"), tensor(r"trainable_tokens"), key("trainable_token_indices")
        ),
        Lane.HOT,
        to_lora=_with_tokens,
        limits="where the engine takes a LoRA on embeddings; needs the base's weights",
    ),
    Method(
        "modules-to-save",
        "LoRA with modules_to_save",
        either(tensor(r"\.modules_to_save\."), key("modules_to_save")),
        Lane.MERGED,
        f"it replaces whole modules of the base, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "layer-replication",
        "LoRA with layer_replication",
        key("layer_replication"),
        Lane.MERGED,
        f"it was trained on a base with repeated layers, another model than the base; {_MERGE}",
    ),
    Method("pissa", "PiSSA", init("pissa"), Lane.HOT, to_lora=plan_residual),
    Method("olora", "OLoRA", init("olora"), Lane.HOT, to_lora=plan_residual),
    Method(
        "pissa-like",
        "LoRA on a changed base",
        mutated_base,
        Lane.MERGED,
        "its factors belong to a base that this initialisation changed (fast PiSSA, CorDA, LoftQ, "
        "LoRA-GA), and neither the file nor the original base tells how; register what the trainer "
        "converted (LLaMA-Factory's pissa_converted, ms-swift's converted/default), save it again "
        "with PEFT's path_initial_model_for_weight_conversion (not for LoftQ), or merge it where "
        "it was trained",
    ),
    Method(
        "moe-experts",
        "LoRA on experts",
        either(tensor(r"\.experts\.|\.experts\.?lora_|\.switch_mlp\."), key("target_parameters")),
        Lane.MERGED,
        f"LoRA on the experts of a mixture is not supported yet; until then {_MERGE}",
    ),
    Method(
        "kasa",
        "KaSA",
        either(tensor(r"\.lora_diag(\.|$)"), key("kasa_config")),
        Lane.HOT,
        to_lora=plan_kasa,
        limits="inner linear layers; needs the base's weights",
    ),
    Method(
        "qalora",
        "QA-LoRA",
        key("use_qalora"),
        Lane.HOT,
        to_lora=plan_qalora,
        limits="linear layers, groups of 2 and up",
    ),
    Method("adalora", "AdaLoRA", tuner("ADALORA"), Lane.HOT, to_lora=plan_adalora),
    Method("vera", "VeRA", tuner("VERA"), Lane.HOT, to_lora=plan_vera),
    Method(
        "pvera-sampling",
        "PVeRA",
        pvera_sampling,
        None,
        "it draws its change anew for every token, which neither lane can do; set "
        "sample_at_inference to false to serve its mean",
    ),
    Method("pvera", "PVeRA", tuner("PVERA"), Lane.HOT, to_lora=plan_pvera),
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
    Method("bone", "Bone", tuner("BONE"), Lane.HOT, to_lora=plan_miss),
    Method("gralora", "GraLoRA", tuner("GRALORA"), Lane.HOT, to_lora=plan_gralora),
    Method("delora", "DeLoRA", tuner("DELORA"), Lane.HOT, to_lora=plan_delora),
    Method("vblora", "VB-LoRA", tuner("VBLORA"), Lane.HOT, to_lora=plan_vblora),
    Method(
        "hra",
        "HRA",
        tuner("HRA"),
        Lane.HOT,
        to_lora=plan_hra,
        limits="linear layers; needs the base's weights",
    ),
    Method(
        "deft",
        "DEFT",
        tuner("DEFT"),
        Lane.HOT,
        to_lora=plan_deft,
        limits="linear layers; needs the base's weights",
    ),
    Method(
        "peanut",
        "PEANuT",
        tuner("PEANUT"),
        Lane.HOT,
        to_lora=plan_peanut,
        limits="linear layers, elementwise activations; needs the base's weights",
    ),
    Method("tinylora", "TinyLoRA", tuner("TINYLORA"), Lane.HOT, to_lora=plan_tinylora),
    Method("unilora", "UniLoRA", tuner("UNILORA"), Lane.HOT, to_lora=plan_unilora),
    Method(
        "other-tensors",
        "another tuner",
        tensor(
            r"\.(lora_E(\.|$)|gralora_|hada_|lokr_|vera_|ia3_l|oft_|boft_|miss_|hra_u|delora_|vblora_|c3a_|shira_"
            r"|bone_block|pvera_|deft_|peanut_|psoft_|tinylora_|unilora_)"
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
    Method("rslora", "rsLoRA", key("use_rslora"), Lane.HOT, to_lora=plan_lora),
    Method("lora", "LoRA", anything, Lane.HOT, to_lora=plan_lora),
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


def refusal_of(method: Method, evidence: str, raw: RawAdapter) -> ArtifactError | None:
    """The error of a method that has no plan: NotHotServable, or NotServable without a lane."""
    if method.refusal is None:
        return None
    error = NotServable if method.lane is None else NotHotServable
    return error(f"this is {_title(method, raw)} ({evidence}): {method.refusal}")
