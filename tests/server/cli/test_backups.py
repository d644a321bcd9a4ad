"""backup, restore, export and import on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.catalog import Catalog
from server.cli.app import COMMANDS
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts


def on(store: Path) -> CommandLine:
    return CommandLine(("--store", str(store)))


@pytest.mark.parametrize("name", ["backup", "backup.tar.zst"])
def test_there_and_back(on_small: CommandLine, tmp_path: Path, name: str) -> None:
    made = on_small.ok("backup", str(tmp_path / name))
    assert (made["versions"], made["copied"], made["problems"]) == (3, 3, [])
    checked = on_small.ok("restore", "--check", str(tmp_path / name))
    assert (checked["checked_only"], checked["adapters"]) == (True, 2)
    other = on(tmp_path / "restored")
    assert other.ok("restore", str(tmp_path / name))["versions"] == 3
    assert other.ok("ls") == on_small.ok("ls")
    again = other("restore", str(tmp_path / name))
    assert (again.code, again.out) == (1, "")
    assert "restore into an empty directory" in again.err


def test_for_people(on_small: CommandLine, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup")
    assert "3 of 3 contents copied now" in on_small("backup", backup).out
    assert "0 of 3 contents copied now" in on_small("backup", backup).out
    assert "has 2 adapters with 3 versions" in on_small("restore", "--check", backup).out
    restored = on(tmp_path / "restored")("restore", backup)
    assert "2 adapters with 3 versions" in restored.out
    exported = on_small("export", "bot", str(tmp_path / "bot.tar.zst"))
    assert exported.out.startswith("bot v1, v2 is in ")


def test_damage_is_exit_1_with_a_line_for_each(
    on_small: CommandLine, small_store: Path, tmp_path: Path
) -> None:
    with Catalog.open(small_store) as catalog:
        blob = catalog.layout.blob(catalog.show("bot:v1").digest)
    (blob / "adapter_config.json").unlink()
    answer = on_small("backup", str(tmp_path / "backup"))
    assert answer.code == 1
    assert "problem: bot:v1 " in answer.err
    assert "1 contents are damaged in the store" in answer.err
    refused = on(tmp_path / "restored")("restore", str(tmp_path / "backup"))
    assert refused.code == 1
    assert "--partial" in refused.err
    partial = on(tmp_path / "restored")("restore", "--partial", str(tmp_path / "backup"))
    assert partial.code == 1
    assert "2 adapters" in partial.out


def test_a_real_adapter_goes_to_another_store(tiny: TinyArtifacts, tmp_path: Path) -> None:
    """With the real intake, which takes every version in again: hot and merged, with a template."""
    here, there = on(tmp_path / "here"), on(tmp_path / "there")
    for store, base in ((here, "tiny"), (there, "same")):
        store.ok("init")
        store.ok("base", "add", base, str(tiny.base))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    here.ok("register", str(tiny.first), "--name", "bot", "--base", "tiny",
            "--chat-template", str(template))  # fmt: skip
    here.ok("register", str(tiny.norm), "--name", "bot", "--base", "tiny", "--tag", "prod")
    here.ok("export", "bot", str(tmp_path / "bot.tar.zst"))
    tried = there.ok("import", str(tmp_path / "bot.tar.zst"), "--dry-run")
    assert tried["dry_run"]
    assert there.ok("ls") == []
    made = there.ok("import", str(tmp_path / "bot.tar.zst"))
    assert [(one["version"], one["base"], one["created"]) for one in made["versions"]] == [
        ("v1", "same", True), ("v2", "same", True),
    ]  # fmt: skip
    assert there.ok("history", "bot") == here.ok("history", "bot")
    assert there.ok("show", "bot:v1")["serving"] == here.ok("show", "bot:v1")["serving"]
    assert there.ok("verify")["problems"] == []
    again = there("import", str(tmp_path / "bot.tar.zst"))
    assert "was already here" in again.out


@pytest.mark.parametrize(
    "words", [("backup", "b"), ("restore", "b"), ("export", "bot", "b.tar"), ("import", "b.tar")]
)
def test_over_a_server_it_says_where_to_run_it(small_store: Path, words: tuple[str, ...]) -> None:
    assert words[0] in COMMANDS
    with admin_server(small_store) as url:
        answer = CommandLine(("--server", url))(*words)
    assert (answer.code, answer.out) == (2, "")
    assert "machine" in answer.err and "--store" in answer.err
