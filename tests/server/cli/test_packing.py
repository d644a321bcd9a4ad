"""What of a directory is sent, as which bytes; and what of it never is."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import SourceRefused, SourceUnreadable
from adapters.sources.archives import unpack
from adapters.sources.policy import Policy
from server.cli.packing import pack


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    root = tmp_path / "my bot"
    for name in ("adapter_config.json", "adapter_model.safetensors", "deep/tokenizer.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(3000))
    for name in ("optimizer.pt", "checkpoint-3/adapter_model.bin", ".git/a.json", "b/.c.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not to be sent")
    (root / "picture.png").write_bytes(b"png")
    return root


def content(source: Path, policy: Policy | None = None) -> bytes:
    packed = pack(source, policy or Policy())
    sent = b"".join(packed.chunks())
    assert len(sent) == packed.size
    return sent


def test_an_adapters_files_and_nothing_else(artifact: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(content(artifact))) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "deep/tokenizer.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    assert pack(artifact, Policy()).name == "my_bot.tar"


def test_the_same_files_are_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    first = content(artifact)
    for path in sorted(artifact.rglob("*"), reverse=True):
        os.utime(path, (1, 1))
    (artifact / "adapter_config.json").chmod(0o600)
    assert content(artifact) == first


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_what_was_packed_is_unpacked(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    """Long and odd names, too; what an archive may not hold is refused before it is sent."""
    root = tmp_path_factory.mktemp("pack")
    written = {}
    for name, body in files.items():
        safe = f"{name}.json"
        if safe.startswith(".") or len(safe.encode()) > 255 or "/" in safe:
            continue
        (root / safe).write_bytes(body)
        written[safe] = body
    if not written:
        return
    try:
        sent = content(root)
    except (SourceRefused, SourceUnreadable):
        assert any(not name.isprintable() or "\\" in name or name[1:2] == ":" for name in written)
        return
    place = tmp_path_factory.mktemp("unpack")
    (place / "a.tar").write_bytes(sent)
    found = unpack(place / "a.tar", place, Policy())
    assert {path.name: path.read_bytes() for path in found.iterdir()} == written


def test_one_file_is_sent_as_it_is(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "my bot.tar.gz"
    file.write_bytes(b"packed")
    assert content(file) == b"packed"
    assert pack(file, Policy()).name == "my_bot.tar.gz"
    (tmp_path / "link.gguf").symlink_to(file)
    assert content(tmp_path / "link.gguf") == b"packed"
    assert pack(tmp_path / "link.gguf", Policy()).name == "link.gguf"


def test_links_inside_are_followed(artifact: Path, tmp_path: Path) -> None:
    (artifact / "files").mkdir()
    (artifact / "adapter_model.safetensors").rename(artifact / "files" / "abc")
    (artifact / "adapter_model.safetensors").symlink_to("files/abc")
    (tmp_path / "named").symlink_to(artifact)
    with tarfile.open(fileobj=io.BytesIO(content(tmp_path / "named"))) as archive:
        member = archive.getmember("adapter_model.safetensors")
        assert (member.isreg(), member.size) == (True, 3000)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.json", "nothing"])
def test_a_link_that_leads_out_is_refused(artifact: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside.json").write_text("secret")
    (artifact / "tokenizer.json").symlink_to(target)
    # What is not sent may lead anywhere.
    (artifact / "notes").symlink_to("/etc/passwd")
    with pytest.raises((SourceRefused, SourceUnreadable), match=r"tokenizer\.json"):
        content(artifact)
    (artifact / "tokenizer.json").unlink()
    assert b"root:" not in content(artifact)


def test_linked_directories_are_not_entered(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.json").write_text("secret")
    (artifact / "linked").symlink_to(tmp_path / "other")
    (artifact / "round").symlink_to(artifact)
    assert b"secret" not in content(artifact)


def test_what_is_no_plain_file_is_refused(artifact: Path) -> None:
    os.mkfifo(artifact / "tokenizer.json")
    with pytest.raises(SourceRefused, match="no plain file"):
        content(artifact)
    with pytest.raises(SourceUnreadable, match="neither a directory nor a plain file"):
        content(artifact / "tokenizer.json")


@pytest.mark.parametrize("change", [b"", b"x" * 2999, b"x" * 3001])
def test_a_file_that_changes_meanwhile(artifact: Path, change: bytes) -> None:
    packed = pack(artifact, Policy())
    (artifact / "adapter_model.safetensors").write_bytes(change)
    with pytest.raises(SourceUnreadable, match="changed while it was sent"):
        list(packed.chunks())


def test_a_file_that_becomes_a_link_meanwhile(artifact: Path) -> None:
    packed = pack(artifact, Policy())
    (artifact / "adapter_model.safetensors").unlink()
    (artifact / "adapter_model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(SourceUnreadable, match="cannot read"):
        list(packed.chunks())


def test_limits_and_what_is_not_there(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="larger than the 5000 bytes"):
        content(artifact, Policy(max_bytes=5000))
    with pytest.raises(SourceRefused, match="has 3 files"):
        content(artifact, Policy(max_members=2))
    with pytest.raises(SourceUnreadable, match="does not exist"):
        content(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SourceUnreadable, match="cannot read"):
        content(tmp_path / "circle")
    with pytest.raises(SourceUnreadable, match="no file that could belong"):
        content(only_checkpoints(tmp_path / "run"))


def only_checkpoints(run: Path) -> Path:
    (run / "checkpoint-7").mkdir(parents=True)
    (run / "checkpoint-7" / "adapter_model.bin").write_bytes(b"x")
    return run
