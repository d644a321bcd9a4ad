"""The contract of every command line: exit codes, one line of complaint, one JSON document."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.local import LocalBackend
from tests.server.cli.command_line import CommandLine, clean_environment, program

WRONG_USAGE = [
    ["bse"],
    ["ls", "--foo"],
    ["ls", "extra"],
    ["base"],
    ["base", "add", "only-a-name"],
    ["register", "somewhere"],
    ["register"],
    ["completion", "tcsh"],
    ["ls", "--store"],
    ["ls", "--store", ""],
    ["--store", "a", "ls", "--server", "http://127.0.0.1:1"],
    ["ls", "--server", "nonsense"],
    ["ls", "--server", "ftp://host"],
    ["ls", "--server", "http://host:port"],
    ["serve", "--server", "http://127.0.0.1:1", "--base", "b"],
    ["serve", "--port", "many", "--base", "b"],
    ["serve", "--port", "70000", "--base", "b"],
]


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    plain = CommandLine()(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.startswith("adapterctl: ")
    assert plain.err.count("\n") == 1
    in_json = CommandLine()("--json", *arguments)
    assert in_json.code == 2
    assert in_json.json["error"]["code"] == "usage"
    assert in_json.err == plain.err


def test_json_alone_asks_for_a_command() -> None:
    code, error = CommandLine().refused()
    assert (code, error["code"]) == (2, "usage")


def test_help_lists_every_command() -> None:
    answer = CommandLine()()
    assert answer.code == 0
    for name in ("init", "register", "rollback", "serve", "doctor", "completion"):
        assert f"\n  {name} " in answer.out
    assert CommandLine()("register", "--help").code == 0


def test_options_count_at_every_place(small_store: Path) -> None:
    expected = CommandLine()("--store", str(small_store), "--json", "ls").out
    assert '"bot"' in expected
    for arguments in (
        ["ls", "--store", str(small_store), "--json"],
        ["--json", "ls", "--store", str(small_store)],
        # The one that stands closer to the command wins.
        ["--store", "/nowhere", "ls", "--store", str(small_store), "--json"],
    ):
        assert CommandLine()(*arguments).out == expected
    bases = CommandLine()("base", "--store", str(small_store), "ls", "--json")
    assert bases.json[0]["name"] == "small"


def test_a_flag_beats_the_environment(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERCTL_STORE", str(small_store))
    assert len(CommandLine().ok("ls")) == 2
    assert CommandLine().refused("ls", "--store", str(tmp_path / "no"))[1]["code"] == (
        "store_not_found"
    )
    monkeypatch.setenv("ADAPTERCTL_URL", "http://127.0.0.1:1")
    assert CommandLine().refused("ls")[1]["code"] == "server_unreachable"
    assert len(CommandLine().ok("ls", "--store", str(small_store))) == 2


def test_the_users_own_store_is_the_default(tmp_path: Path) -> None:
    assert CommandLine().ok("init")["store"] == str(tmp_path / "data" / "adapterctl")
    assert CommandLine().ok("ls") == []


def test_empty_states_say_what_to_do(tmp_path: Path) -> None:
    cli = CommandLine(("--store", str(tmp_path / "new")))
    assert "adapterctl init" in cli("ls").err
    assert "adapterctl base add" in cli("init").out
    assert "adapterctl register" in cli("ls").out
    assert "adapterctl base add" in cli("base", "ls").out
    assert "adapterctl serve" in cli("engines").out


def test_people_get_aligned_tables(on_small: CommandLine) -> None:
    header, *rows = on_small("ls").out.splitlines()
    assert header.split() == ["NAME", "BASE", "VERSION", "DIGEST", "METHOD", "LANE", "TAGS"]
    assert [row.split()[0] for row in rows] == ["bot", "other"]
    assert {row.index("small") for row in rows} == {header.index("BASE")}
    assert rows[0].endswith("latest=v2, prod=v1")
    assert "\x1b" not in header


def test_show_lists_versions_for_a_bare_name_only(on_small: CommandLine) -> None:
    assert "REGISTERED" in on_small("show", "bot").out
    shown = on_small("show", "bot:v1").out
    assert "REGISTERED" not in shown
    assert on_small.ok("show", "bot:v1")["digest"] in shown


def test_a_fault_of_ours_is_one_line_and_a_log(
    small_store: Path, on_small: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LocalBackend, wanted: object) -> None:
        raise ZeroDivisionError("on\npurpose")

    monkeypatch.setattr(LocalBackend, "adapters", fail)
    code, error = on_small.refused("ls")
    assert (code, error["code"]) == (1, "internal_error")
    log = small_store / "logs" / "cli.log"
    assert str(log) in error["message"]
    assert "ZeroDivisionError: on\npurpose" in log.read_text()


def test_a_fault_without_a_store_is_logged_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: LocalBackend, wanted: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LocalBackend, "adapters", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    CommandLine(("--store", str(tmp_path / "none"))).refused("ls")
    (log,) = tmp_path.glob("adapterctl-*.log")
    assert "ZeroDivisionError" in log.read_text()


def test_nobody_reads_the_answer(small_store: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", "--store", str(small_store), "ls"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_answer_cannot_be_written(small_store: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "server.cli.main", "--store", str(small_store), "ls"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("adapterctl: cannot write the output")
    assert done.stderr.count("\n") == 1


def test_version_and_program_name() -> None:
    answer = program("--version")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("adapterctl, version ")


def test_interrupt_before_anything_is_quiet(small_store: Path) -> None:
    # Started with SIGINT ignored a child would never see it, as in a shell's background job.
    child = subprocess.Popen(
        [sys.executable, "-m", "server.cli.main", "--store", str(small_store), "verify"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # noqa: PLW1509
    )
    assert child.stderr is not None
    child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    if child.returncode != 0:  # it may have been done already
        assert (child.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = CommandLine().ok("completion", shell)["script"]
    assert "_ADAPTERCTL_COMPLETE" in script
    assert CommandLine()("completion", shell).out.strip() == script.strip()
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_shell_gets_names_that_exist(small_store: Path) -> None:
    def suggested(words: str) -> list[str]:
        answer = program(
            environment=clean_environment(
                _ADAPTERCTL_COMPLETE="bash_complete",
                COMP_WORDS=f"adapterctl {words}",
                COMP_CWORD=str(len(words.split(" "))),
                ADAPTERCTL_STORE=str(small_store),
            )
        )
        assert answer.err == ""
        return [line.partition(",")[2] for line in answer.out.splitlines()]

    assert suggested("show b") == ["bot"]
    assert suggested("show bot:") == ["bot:latest", "bot:prod", "bot:v1", "bot:v2"]
    assert suggested("base show ") == ["small"]
    assert "rollback" in suggested("roll")
