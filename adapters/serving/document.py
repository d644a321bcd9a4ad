"""`serving.json`: what an adapter brings to every request that says nothing of its own.

It lies beside the weights in the version's directory and is a part of its digest, since it changes
what the version answers. An adapter that brings nothing has no such file.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, ValidationError

from adapters.errors import InvalidConfig, UsageError
from adapters.frozen import Frozen

SERVING_FILE = "serving.json"
# The longest templates of released models are below 40 kB.
MAX_TEMPLATE_BYTES = 128 * 1024
MAX_PROMPT_BYTES = 64 * 1024
# vLLM takes so many stop strings (VLLM_MAX_STOP_STRINGS).
MAX_STOPS = 4

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[int, Field(strict=True)]
_TokenId = Annotated[int, Field(strict=True, ge=0)]
_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class SamplingDefaults(Frozen):
    """Sampling fields by vLLM's names and within its bounds; None: nothing is said."""

    temperature: _Number | None = Field(None, ge=0, le=2)
    top_p: _Number | None = Field(None, gt=0, le=1)
    top_k: _Whole | None = Field(None, ge=-1, le=2**31)
    min_p: _Number | None = Field(None, ge=0, le=1)
    repetition_penalty: _Number | None = Field(None, gt=0)
    frequency_penalty: _Number | None = Field(None, ge=-2, le=2)
    presence_penalty: _Number | None = Field(None, ge=-2, le=2)
    max_tokens: _Whole | None = Field(None, ge=1, le=2**31)
    seed: _Whole | None = Field(None, ge=-(2**63), lt=2**63)
    stop: tuple[_Stop, ...] | None = Field(None, min_length=1, max_length=MAX_STOPS)
    stop_token_ids: tuple[_TokenId, ...] | None = Field(None, min_length=1, max_length=64)

    def said(self) -> dict[str, Any]:
        """What is said, as JSON has it."""
        return self.model_dump(mode="json", exclude_none=True)

    def over(self, other: SamplingDefaults) -> SamplingDefaults:
        """These, and what only `other` says."""
        return SamplingDefaults.model_validate({**other.said(), **self.said()})


_UNSAID = SamplingDefaults()


class Serving(Frozen):
    """What the gateway applies to a request where the request itself says nothing."""

    chat_template: str | None = None
    system_prompt: str | None = None
    defaults: SamplingDefaults = _UNSAID

    @property
    def empty(self) -> bool:
        """Whether it says nothing at all."""
        # Asked in every request: no document is made only to compare with it.
        return (
            self.chat_template is None
            and self.system_prompt is None
            and (self.defaults is _UNSAID or self.defaults == _UNSAID)
        )

    def lines(self) -> tuple[str, ...]:
        """What it says, a short line each, for people."""
        said = []
        if self.chat_template is not None:
            said.append(f"chat template of its own, {len(self.chat_template):,} characters")
        if self.system_prompt is not None:
            words = " ".join(self.system_prompt.split())
            said.append(f"system prompt: {words if len(words) <= 200 else words[:200] + '…'}")
        said += [
            f"default {key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in self.defaults.said().items()
        ]
        return tuple(said)

    def encode(self) -> bytes:
        """The bytes of serving.json: the same for the same content."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if not document["defaults"]:
            del document["defaults"]
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, indent=2)
        # A JSON string may hold a lone surrogate, which UTF-8 cannot.
        return (text + "\n").encode("utf-8", "backslashreplace")


class ServingChoice(Frozen):
    """What the user says at registration; it beats what the artifact says.

    An empty text takes the artifact's own away. `weights_only` takes nothing out of the artifact.
    """

    chat_template: str | None = None
    system_prompt: str | None = None
    defaults: SamplingDefaults = _UNSAID
    weights_only: bool = False


NO_CHOICE = ServingChoice()


def decode(data: bytes) -> Serving:
    """Parses serving.json; raises ValueError for anything else."""
    return Serving.model_validate_json(data)


def defaults_from(values: dict[str, Any], where: str) -> SamplingDefaults:
    """Checked defaults; raises InvalidConfig that names `where`, the key and its fault."""
    try:
        return SamplingDefaults.model_validate(values)
    except ValidationError as error:
        raise InvalidConfig(f"{where}: {_first_fault(error)}") from None


def defaults_from_user(pairs: list[str]) -> SamplingDefaults:
    """KEY=VALUE texts, each value JSON or else a text; raises UsageError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in SamplingDefaults.model_fields:
            known = ", ".join(SamplingDefaults.model_fields)
            raise UsageError(f"--default '{pair[:60]}': write KEY=VALUE with KEY one of {known}")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        # One stop is common, and a stop may look like JSON (`{`, `"""`, `1`).
        values[key] = [text] if key == "stop" and not isinstance(value, list) else value
    try:
        return SamplingDefaults.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"--default {_first_fault(error)}") from None


def check_text(text: str, what: str, limit: int) -> str:
    """`text` if it is within `limit` bytes and can be written as UTF-8; raises InvalidConfig."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidConfig(f"{what} is not valid Unicode: save it again as UTF-8") from None
    if size > limit:
        raise InvalidConfig(f"{what} has {size} bytes; at most {limit} are taken")
    return text


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"])
    return f"'{place}' {said[:1].lower()}{said[1:]}"
