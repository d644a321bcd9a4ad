"""No content of the small files around an adapter does worse than be refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.errors import ArtifactError
from adapters.serving.generation_config import own_defaults
from adapters.serving.tokenizer_files import added_token_id, read_tokenizer_files

NAMES = (
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.json",
    "chat_template.jinja",
)
KEYS = st.sampled_from(
    [
        "chat_template",
        "name",
        "template",
        "content",
        "eos_token",
        "added_tokens",
        "added_tokens_decoder",
        "id",
        "temperature",
        "top_k",
        "max_new_tokens",
        "stop_strings",
        "eos_token_id",
        "do_sample",
        "</s>",
        "2",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CONTENTS = (
    st.dictionaries(KEYS, VALUES, max_size=6).map(lambda value: json.dumps(value).encode())
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60)
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), CONTENTS, CONTENTS)
@example("generation_config.json", b'{"temperature": 1' + b"0" * 400 + b"}", b"{}")
@example("generation_config.json", b'{"top_k": ' + b"9" * 5000 + b"}", b"{}")
@example("generation_config.json", b'{"temperature": NaN}', b'{"temperature": NaN}')
@example("tokenizer.json", b'{"added_tokens": ["</s>", {"content": "</s>", "id": -1}]}', b"{}")
@example("tokenizer_config.json", b"[" * 100_000, b"{}")
def test_it_is_read_or_refused_in_a_sentence(
    tmp_path: Path, name: str, mine: bytes, theirs: bytes
) -> None:
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    for directory, data in ((tmp_path, mine), (base, theirs)):
        for other in NAMES:
            (directory / other).unlink(missing_ok=True)
        (directory / name).write_bytes(data)
    for read in (
        lambda: own_defaults(tmp_path, base),
        lambda: read_tokenizer_files(tmp_path),
        lambda: added_token_id(tmp_path, "</s>"),
    ):
        try:
            read()
        except ArtifactError as fault:
            assert "\n" not in fault.message
            assert len(fault.message) < 400
