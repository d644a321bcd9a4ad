"""Chat template, system prompt and defaults on the command line; filters of ls; what show says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module", params=["store", "server"])
def cli(
    request: pytest.FixtureRequest, tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    """An empty store with the base `tiny`, directly and over the admin API."""
    store = tmp_path_factory.mktemp("serving") / "store"
    on_store = CommandLine(("--store", str(store)))
    on_store.ok("init")
    on_store.ok("base", "add", "tiny", str(tiny.base))
    if request.param == "store":
        yield on_store
        return
    with admin_server(store) as url:
        yield CommandLine(("--server", url))


def register(cli: CommandLine, source: Path, name: str, *options: str) -> None:
    cli.ok("register", str(source), "--name", name, "--base", "tiny", *options)


def test_what_is_given_is_stored_and_shown(
    cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    (tmp_path / "prompt.txt").write_text("Talk like a\npirate.")
    register(
        cli,
        tiny.first,
        "pirate",
        *("--chat-template", str(tmp_path / "template.jinja")),
        *("--system-prompt", f"@{tmp_path / 'prompt.txt'}"),
        *("--default", "temperature=0.2", "--default", "stop=###"),
    )
    shown = cli.ok("show", "pirate")
    assert shown["serving"] == {
        "chat_template": TEMPLATE,
        "system_prompt": "Talk like a\npirate.",
        "defaults": {"temperature": 0.2, "stop": ["###"]},
    }
    text = cli("show", "pirate").out
    for line in (
        f"brings  chat template of its own, {len(TEMPLATE)} characters",
        "brings  system prompt: Talk like a pirate.",
        "brings  default temperature: 0.2",
        'brings  default stop: ["###"]',
    ):
        assert line in text
    register(cli, tiny.first, "plain")
    assert cli.ok("show", "plain")["serving"] == {"defaults": {}}
    assert "brings" not in cli("show", "plain").out


def test_show_tells_where_it_came_from(cli: CommandLine, tiny: TinyArtifacts) -> None:
    register(cli, tiny.second, "told")
    manifest = cli.ok("show", "told")["manifest"]
    assert manifest["registered_by"]
    assert manifest["tensor_dtypes"] == ["F32"]
    assert manifest["precision"] is None
    text = cli("show", "told").out
    assert "precision      not said; the adapter's own tensors are F32" in text
    assert f"registered by  {manifest['registered_by']}" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--default", "temperature=9"), "--default 'temperature'"),
        (("--default", "size=9"), "write KEY=VALUE"),
        (("--chat-template", "/nowhere/at/all"), "cannot read /nowhere/at/all"),
        (("--system-prompt", "@/nowhere/at/all"), "cannot read /nowhere/at/all"),
    ],
)
def test_wrong_options_are_wrong_usage(
    cli: CommandLine, tiny: TinyArtifacts, options: tuple[str, ...], words: str
) -> None:
    code, error = cli.refused(
        "register", str(tiny.first), "--name", "no", "--base", "tiny", *options
    )
    assert code == 2
    assert words in error["message"]


def test_a_hostile_template_is_refused(
    cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "bomb.jinja").write_text("{{ 'a' * 10 ** 10 }}")
    code, error = cli.refused(
        *("register", str(tiny.first), "--name", "no", "--base", "tiny"),
        *("--chat-template", str(tmp_path / "bomb.jinja")),
    )
    assert (code, error["code"]) == (1, "invalid_config")
    assert error["message"] == "the chat template cannot be served: it takes too much memory"


def test_ls_filters(cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path) -> None:
    """The same arguments on a store and over HTTP; what each means is tested at the registry."""
    source = tmp_path / "quantized"
    source.mkdir()
    for file in tiny.first.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "unsloth/tiny-bnb-4bit"
    (source / "adapter_config.json").write_text(json.dumps(config))
    register(cli, source, "team-a", "--tag", "prod")
    register(cli, tiny.second, "team-a")
    register(cli, tiny.second, "team-b")

    def names(*options: str) -> list[tuple[str, str]]:
        return [(row["name"], row["version"]) for row in cli.ok("ls", *options)]

    assert names("--name", "team-*") == [("team-a", "v2"), ("team-b", "v1")]
    assert names("--name", "team-*", "--precision", "NF4") == []
    assert names("--precision", "nf4", "--tag", "prod") == [("team-a", "v1")]
    assert names("--tag", "prod", "--base", "tiny", "--lane", "hot", "--method", "LoRA") == [
        ("team-a", "v1")
    ]
    assert names("--trainer", "peft", "--format", "peft", "--name", "*-b") == [("team-b", "v1")]
    assert names("--base", "other") == names("--lane", "merged") == []
    assert cli("ls", "--base", "other").out.startswith("No adapter matches.")
    assert cli("ls", "--lane", "cold").code == 2
