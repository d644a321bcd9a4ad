"""The library is built once, where nobody else can write, and everything works without it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.vllm_plugin.native import library as native
from server.vllm_plugin.native.builder import (
    NotBuiltError,
    _cache_directory,
    library_path,
    require_private,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own with the library in it, which is compiled once for all tests."""
    try:
        built = library_path()
    except NotBuiltError as error:
        pytest.skip(str(error))
    directory = tmp_path / "cache" / "adapterctl" / "native"
    directory.mkdir(mode=0o700, parents=True)
    shutil.copy(built, directory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


def test_built_once_readable_by_its_owner_only(cache: Path) -> None:
    library_path().unlink()
    path = library_path()
    before = path.stat()
    assert library_path() == path
    assert path.stat().st_ino == before.st_ino
    assert [p.name for p in cache.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
    assert native.Library(path).rank(None, 0, 0, 0) == 0


def test_two_that_build_at_once_end_with_one_whole_file(cache: Path) -> None:
    library_path().unlink()
    command = [sys.executable, "-m", "server.vllm_plugin.native"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=120)[0] for process in both}
    assert told == {f"kernels: {library_path()}\n"}
    assert len(list(cache.iterdir())) == 1
    native.Library(library_path())


@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_a_directory_of_others_is_refused(cache: Path, mode: int) -> None:
    cache.chmod(mode)
    with pytest.raises(NotBuiltError, match="others than this user can write"):
        library_path()
    cache.chmod(0o700)
    cache.parent.chmod(mode)
    with pytest.raises(NotBuiltError, match="XDG_CACHE_HOME"):
        library_path()
    cache.parent.chmod(0o700)
    library_path().chmod(0o722)
    with pytest.raises(NotBuiltError, match="others than this user can write"):
        require_private(next(cache.iterdir()))


def test_a_relative_cache_directory_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    # Before anything is looked for there: nothing is made in the working directory.
    with pytest.raises(NotBuiltError, match="no C compiler"):
        library_path()
    assert _cache_directory() == tmp_path / ".cache" / "adapterctl" / "native"


@pytest.mark.parametrize("compiler", ["", "#!/bin/sh\n[ $1 = --version ] || exit 1\n"])
def test_without_a_working_compiler_torch_does_it(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        (tmp_path / "cc").write_text(compiler)
        (tmp_path / "cc").chmod(0o700)
    with caplog.at_level(logging.WARNING):
        assert native.load.__wrapped__() is None
    assert len(caplog.records) == 1
    expected = "failed" if compiler else "no C compiler"
    assert expected in caplog.records[0].getMessage()
    assert os.environ["PATH"] == str(tmp_path)


def test_a_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.load.__wrapped__() is None


def test_a_file_that_is_no_library_is_not_fatal(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = library_path()
    path.unlink()
    path.write_text("cut short")
    path.chmod(0o500)
    with caplog.at_level(logging.WARNING):
        assert native.load.__wrapped__() is None
    assert "torch does it" in caplog.records[0].getMessage()
