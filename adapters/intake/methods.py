"""What an artifact is mathematically: one row a method, recognised from tensors, then config.

The first row that recognises the artifact decides. Tensors come first everywhere: torchtune, for
one, writes DoRA magnitudes under a config that does not say DoRA. A new method is one row here
and one file with its `to_lora`.
"""

from __future__ import annotations

import reprlib
from typing import Any

from adapters.errors import ArtifactError, InvalidConfig, NotHotServable, NotServable
from adapters.frozen import Lane
from adapters.intake.bdlora import plan_bdlora
from adapters.intake.evidence import (
    EXPERTS,
    anything,
    either,
    experts,
    init,
    key,
    mutated_base,
    other_task,
    other_tuner,
    tensor,
    tuner,
    value_head_file,
)
from adapters.intake.experts import plan_experts
from adapters.intake.extraction import extract
from adapters.intake.kasa import plan_kasa
from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.lora_merge import plan_lora_merge
from adapters.intake.merge_only import MERGE_ONLY
from adapters.intake.method import MERGE, Method
from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.qalora import plan_qalora
from adapters.intake.raw import RawAdapter
from adapters.intake.residual import plan_residual
from adapters.intake.routers import plan_router
from adapters.intake.sampled import plan_sampled
from adapters.intake.trainable_tokens import plan_tokens, without_tokens
from adapters.intake.tuner_methods import TUNERS
from adapters.intake.whole_weights import plan_whole_weights
from adapters.models import BaseDescriptor


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
    *(
        Method(
            row.name,
            row.title,
            tuner(row.peft_type),
            Lane.MERGED,
            f"{row.why}; {MERGE}",
            to_merge=row.to_merge,
            limits=row.limits,
        )
        for row in MERGE_ONLY
    ),
    Method(
        "adamss",
        "AdaMSS",
        tuner("ADAMSS"),
        None,
        "which rows of a weight each of its factors is for was found by clustering the base's "
        "weights and is not saved; merge it with PEFT where it was trained and register the result",
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
        either(key("fine_tune_type", unless=("lora", "dora")), key("whole_weights")),
        Lane.MERGED,
        f"it replaces whole weights of the base, which no plain LoRA expresses; {MERGE}",
        to_merge=plan_whole_weights,
        to_approximation=extract,
        limits="hot only with --approximate; every parameter of the base, of its shapes; the "
        "vocabulary may have another size in the merged lane",
    ),
    Method(
        "dora",
        "DoRA",
        either(tensor(r"\.lora_magnitude_vector(\.|$)|\.magnitude(\.|$)"), key("use_dora")),
        Lane.MERGED,
        "DoRA rescales every row of the merged weight, which no plain LoRA expresses",
        to_merge=plan_lora_merge,
        limits="on an embedding from PEFT only; torchtune's own file, not its export, where q or k "
        "is tuned",
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
        either(
            tuner("TRAINABLE_TOKENS"), tensor(r"trainable_tokens"), key("trainable_token_indices")
        ),
        Lane.HOT,
        to_lora=_with_tokens,
        to_merge=plan_lora_merge,
        limits="where the engine takes a LoRA on embeddings; needs the base's weights",
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
        "LoRA-GA), and neither the file nor the original base tells how; register what the trainer "
        "converted (LLaMA-Factory's pissa_converted, ms-swift's converted/default), save it again "
        "with PEFT's path_initial_model_for_weight_conversion (not for LoftQ), or merge it where "
        "it was trained",
    ),
    Method(
        "moe-experts",
        "LoRA on experts",
        experts,
        Lane.MERGED,
        f"vLLM's CPU engine applies no LoRA to the experts of a mixture; {MERGE}",
        to_merge=plan_experts,
        limits="architectures in adapters/bases/experts.py",
    ),
    Method(
        "moe-other",
        "another tuner on experts",
        tensor(EXPERTS),
        Lane.MERGED,
        f"of methods on the experts of a mixture only plain LoRA is supported; {MERGE}",
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
    *TUNERS,
    Method(
        "other-tensors",
        "another tuner",
        tensor(
            r"\.(lora_E(\.|$)|gralora_|hada_|lokr_|vera_|ia3_l|oft_|boft_|miss_|hra_u|delora_|vblora_|c3a_|shira_"
            r"|bone_block|pvera_|deft_|peanut_|psoft_|tinylora_|unilora_)"
        ),
        Lane.MERGED,
        f"its tensors are of another tuner than the config says; {MERGE}",
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
    Method(
        "moe-router",
        "LoRA with routers",
        either(tensor(r"\.(gate|router)\.lora_[AB]"), key("target_parameters")),
        Lane.HOT,
        to_lora=plan_router,
        limits="architectures in adapters/bases/experts.py; of target_parameters, routers only",
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
    return method.refusal.removesuffix(f"; {MERGE}")


def refusal_of(method: Method, evidence: str, raw: RawAdapter) -> ArtifactError | None:
    """The error of a method that has no plan: NotHotServable, or NotServable without a lane."""
    if method.refusal is None or method.to_merge is not None:
        return None
    error = NotServable if method.lane is None else NotHotServable
    return error(f"this is {_title(method, raw)} ({evidence}): {method.refusal}")
