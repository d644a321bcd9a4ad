"""What an artifact is mathematically: one row a method, recognised from tensors, then config.

The first row that recognises the artifact decides. Tensors come first everywhere: torchtune, for
one, writes DoRA magnitudes under a config that does not say DoRA. A new method is one row here
and one file with its `to_lora`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapters.errors import ArtifactError, InvalidConfig, NotHotServable, NotServable
from adapters.intake.adalora import plan_adalora
from adapters.intake.bdlora import plan_bdlora
from adapters.intake.delora import plan_delora
from adapters.intake.gralora import plan_gralora
from adapters.intake.loha import plan_loha
from adapters.intake.lokr import plan_lokr
from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.miss import plan_miss
from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.raw import RawAdapter
from adapters.intake.residual import exact_init, plan_residual
from adapters.intake.sampled import plan_sampled
from adapters.intake.vblora import plan_vblora
from adapters.intake.vera import plan_vera
from adapters.models import BaseDescriptor, Lane

Evidence = Callable[[RawAdapter], str | None]

# Initialisations that only choose the first A and B; the base stays as it is. lora_ga changes the
# base during training, the others (fast PiSSA, CorDA, LoftQ) whenever PEFT loads the adapter; PiSSA
# and OLoRA have rows of their own.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "true", "false"})


@dataclass(frozen=True, slots=True)
class Method:
    """A row: how a method shows, which lane it takes, and either its plan or the refusal.

    `recognise` returns what gave it away (for the message) or None. `refusal` says why it is no
    plain LoRA; a row has either `refusal` or `to_lora`.
    """

    name: str
    title: str
    recognise: Evidence
    lane: Lane | None
    refusal: str | None = None
    to_lora: Callable[[RawAdapter, BaseDescriptor], LoraPlan] | None = None


def _tensor(pattern: str) -> Evidence:
    compiled = re.compile(pattern)

    def look(raw: RawAdapter) -> str | None:
        found = next((name for name in raw.tensors if compiled.search(name)), None)
        return f"tensor '{found}'" if found is not None else None

    return look


def _key(*keys: str, unless: tuple[Any, ...] = ()) -> Evidence:
    """One of the config's `keys` is set to something (and not to one of `unless`)."""

    def look(raw: RawAdapter) -> str | None:
        for key in keys:
            value = raw.config.get(key)
            # Token index 0 or an empty object is a setting; null, false and [] are none.
            if value is not None and value is not False and value not in ([], {}, "", *unless):
                return f"{key} = {reprlib.repr(value)}"
        return None

    return look


def _either(*evidence: Evidence) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return next((found for e in evidence if (found := e(raw)) is not None), None)

    return look


def _other_tuner(fate: Fate) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        kind = PEFT_TYPES.get(str(raw.config.get("peft_type")))
        return f"peft_type {raw.config['peft_type']}" if kind and kind.fate is fate else None

    return look


def _tuner(kind: str) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return f"peft_type {kind}" if raw.config.get("peft_type") == kind else None

    return look


def _init(init: str) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return f"init_lora_weights = '{init}'" if exact_init(raw) == init else None

    return look


def _miss_bat(raw: RawAdapter) -> str | None:
    bat = raw.config.get("peft_type") == "MISS" and raw.config.get("init_weights") == "bat"
    return "init_weights = 'bat'" if bat else None


def _mutated_base(raw: RawAdapter) -> str | None:
    init = raw.config.get("init_lora_weights")
    if init is None or isinstance(init, bool):
        return None
    if isinstance(init, str) and init.lower() in PLAIN_INITS:
        return None
    return f"init_lora_weights = {reprlib.repr(init)}"


def _other_task(raw: RawAdapter) -> str | None:
    task = raw.config.get("task_type")
    return None if task is None or task == "CAUSAL_LM" else f"task_type = {reprlib.repr(task)}"


def _value_head_file(raw: RawAdapter) -> str | None:
    return f"the file {raw.extras[0]}" if raw.extras else None


def _anything(raw: RawAdapter) -> str:
    return "LoRA factors"


_MERGE = "merge it into the base and serve the result"

METHODS: tuple[Method, ...] = (
    Method(
        "prompt-or-router",
        "a prompt or a router",
        _either(_other_tuner(Fate.NEVER), _tensor(r"^prompt_embeddings$|adaption_(prompt|gate)")),
        None,
        Fate.NEVER.value,
    ),
    Method(
        "other-convertible",
        "another tuner",
        _other_tuner(Fate.CONVERTIBLE),
        Lane.MERGED,
        f"{Fate.CONVERTIBLE.value}; until then {_MERGE}",
    ),
    Method(
        "other-merge",
        "another tuner",
        _other_tuner(Fate.MERGE),
        Lane.MERGED,
        f"{Fate.MERGE.value}; {_MERGE}",
    ),
    Method(
        "alora",
        "an activated LoRA",
        _key("alora_invocation_tokens"),
        None,
        "an activated LoRA starts at its invocation tokens only, which neither lane can do",
    ),
    Method(
        "arrow",
        "an Arrow router",
        _key("arrow_config"),
        None,
        "Arrow routes between adapters by the input, which neither lane can do",
    ),
    Method(
        "reward-model",
        "a reward model",
        _either(
            _tensor(r"(^|\.)(v_head|value_head|score|classifier|classification_head)\."),
            _value_head_file,
        ),
        None,
        "it is a value or classification head (a reward model), which produces scores and no text",
    ),
    Method(
        "other-task",
        "an adapter for another task",
        _other_task,
        None,
        "only adapters for CAUSAL_LM produce text",
    ),
    Method(
        "full-fine-tune",
        "a full fine-tune",
        _key("fine_tune_type", unless=("lora", "dora")),
        Lane.MERGED,
        f"it replaces whole weights of the base, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "dora",
        "DoRA",
        _either(_tensor(r"\.lora_magnitude_vector(\.|$)|\.magnitude(\.|$)"), _key("use_dora")),
        Lane.MERGED,
        f"DoRA rescales every row of the merged weight, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "kasa",
        "KaSA",
        _either(_tensor(r"\.lora_diag(\.|$)"), _key("kasa_config")),
        Lane.MERGED,
        f"KaSA truncates the base's own weight, which is not supported yet; until then {_MERGE}",
    ),
    Method(
        "lora-bias",
        "LoRA with a bias",
        _either(_tensor(r"\.lora_(A|B)(\.[^.]+)?\.bias$"), _key("lora_bias")),
        Lane.MERGED,
        f"a bias on lora_B is added to the output, which a plain LoRA has no place for; {_MERGE}",
    ),
    Method(
        "trained-bias",
        "LoRA with trained biases",
        _either(_tensor(r"\.bias$"), _key("bias", unless=("none",))),
        Lane.MERGED,
        f"it replaces biases of the base, which a plain LoRA has no place for; {_MERGE}",
    ),
    Method(
        "trainable-tokens",
        "LoRA with trainable tokens",
        _either(_tensor(r"trainable_tokens"), _key("trainable_token_indices")),
        Lane.MERGED,
        f"it replaces rows of the embedding, which is not supported yet; until then {_MERGE}",
    ),
    Method(
        "modules-to-save",
        "LoRA with modules_to_save",
        _either(_tensor(r"\.modules_to_save\."), _key("modules_to_save")),
        Lane.MERGED,
        f"it replaces whole modules of the base, which no plain LoRA expresses; {_MERGE}",
    ),
    Method(
        "layer-replication",
        "LoRA with layer_replication",
        _key("layer_replication"),
        Lane.MERGED,
        f"it was trained on a base with repeated layers, another model than the base; {_MERGE}",
    ),
    Method("pissa", "PiSSA", _init("pissa"), Lane.HOT, to_lora=plan_residual),
    Method("olora", "OLoRA", _init("olora"), Lane.HOT, to_lora=plan_residual),
    Method(
        "pissa-like",
        "LoRA on a changed base",
        _mutated_base,
        Lane.MERGED,
        "its factors belong to a base that this initialisation changed (fast PiSSA, CorDA, LoftQ, "
        "LoRA-GA), so on the original base they are wrong; save it with PEFT's "
        f"path_initial_model_for_weight_conversion, or {_MERGE}",
    ),
    Method(
        "qalora",
        "QA-LoRA",
        _key("use_qalora"),
        Lane.MERGED,
        f"QA-LoRA's pooled lora_A is not supported yet; until then {_MERGE}",
    ),
    Method(
        "moe-experts",
        "LoRA on experts",
        _either(
            _tensor(r"\.experts\.|\.experts\.?lora_|\.switch_mlp\."), _key("target_parameters")
        ),
        Lane.MERGED,
        f"LoRA on the experts of a mixture is not supported yet; until then {_MERGE}",
    ),
    Method("adalora", "AdaLoRA", _tuner("ADALORA"), Lane.HOT, to_lora=plan_adalora),
    Method("vera", "VeRA", _tuner("VERA"), Lane.HOT, to_lora=plan_vera),
    Method("loha", "LoHa", _tuner("LOHA"), Lane.HOT, to_lora=plan_loha),
    Method("lokr", "LoKr", _tuner("LOKR"), Lane.HOT, to_lora=plan_lokr),
    Method(
        "miss-bat",
        "MiSS",
        _miss_bat,
        Lane.MERGED,
        f"in this mode it multiplies the base's weight and so has full rank; {_MERGE}",
    ),
    Method("miss", "MiSS", _tuner("MISS"), Lane.HOT, to_lora=plan_miss),
    Method("gralora", "GraLoRA", _tuner("GRALORA"), Lane.HOT, to_lora=plan_gralora),
    Method("delora", "DeLoRA", _tuner("DELORA"), Lane.HOT, to_lora=plan_delora),
    Method(
        "vblora-topk",
        "VB-LoRA",
        _tensor(r"\.vblora_logits_[AB]_topk_"),
        Lane.MERGED,
        "only the chosen vectors were saved (save_only_topk_weights), which is not supported yet; "
        f"until then {_MERGE}",
    ),
    Method("vblora", "VB-LoRA", _tuner("VBLORA"), Lane.HOT, to_lora=plan_vblora),
    Method(
        "other-tensors",
        "another tuner",
        _tensor(
            r"\.(lora_E(\.|$)|gralora_|hada_|lokr_|vera_|ia3_l|oft_|boft_|miss_|hra_u|delora_|vblora_|c3a_|shira_)"
        ),
        Lane.MERGED,
        f"its tensors are of another tuner than the config says; {_MERGE}",
    ),
    Method("bdlora", "BD-LoRA", _key("use_bdlora"), Lane.HOT, to_lora=plan_bdlora),
    Method(
        "monteclora",
        "MonteCLoRA",
        _either(_tensor(r"\.lora_monteclora_sampler(\.|$)"), _key("monteclora_config")),
        Lane.HOT,
        to_lora=plan_sampled,
    ),
    Method(
        "velora",
        "VeLoRA",
        _either(_tensor(r"\.lora_velora_embed(\.|$)"), _key("velora_config")),
        Lane.HOT,
        to_lora=plan_sampled,
    ),
    Method("rslora", "rsLoRA", _key("use_rslora"), Lane.HOT, to_lora=plan_lora),
    Method("lora", "LoRA", _anything, Lane.HOT, to_lora=plan_lora),
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
