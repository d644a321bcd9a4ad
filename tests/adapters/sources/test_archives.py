"""Archives: sound ones come out whole, hostile ones never get out of their directory."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterctlError, DamagedArtifact, SourceRefused
from adapters.sources.archives import unpack
from adapters.sources.policy import Policy

SMALL = Policy(max_members=20, max_bytes=1 << 20, ratio_grace=1 << 16, max_ratio=50)


def zstd(content: bytes) -> bytes:
    """As `zstd` packs it, with its checksum."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def tar(*members: tarfile.TarInfo | tuple[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive as the standard library writes it, hostile members and all."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = 8) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def zip_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def encrypted_zip() -> bytes:
    """The standard library writes none: the flag in both headers is what makes one."""
    content = bytearray(zipped(("a", b"secret"), method=0))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def renamed_zip(name: bytes) -> bytes:
    """A name that the standard library would not write."""
    return zipped(("x" * len(name), b"content")).replace(b"x" * len(name), name)


def bomb_zip(declared: int) -> bytes:
    """A deflated megabyte of zeros, declared as any size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(bytes(1 << 20)) + packer.flush()
    checksum = zlib.crc32(bytes(1 << 20))
    sizes = struct.pack("<LLL", checksum, len(data), declared)
    common = struct.pack("<HHHHH", 20, 0, 8, 0, 33)
    local = b"PK\x03\x04" + common + sizes + struct.pack("<HH", 1, 0) + b"a" + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common + sizes
    central += struct.pack("<HHHHHLL", 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\x05\x06" + end


def huge_directory_zip() -> bytes:
    """Says that its list of members has 64 MiB, and has the bytes to show for it."""
    size = 64 << 20
    return b"PK" + bytes(size) + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, size, 0, 0)


def pax(**records: str) -> bytes:
    info = tarfile.TarInfo("a")
    info.pax_headers = records
    return tar(info, format=tarfile.PAX_FORMAT)


def absurd_extension() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = b"L", 1 << 30
    return info.tobuf() + bytes(1024)


def run_out(place: Path, name: str, content: bytes, policy: Policy = SMALL) -> Path:
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return unpack(place / name, place, policy)


HOSTILE: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("tar absolute", "a.tar", lambda: tar(("/etc/evil", b"x")), "absolute"),
    ("tar dotdot", "a.tar", lambda: tar(("a/../../evil", b"x")), "'..'"),
    ("tar symlink", "a.tar", lambda: tar(special("l", tarfile.SYMTYPE, "/etc")), "symbolic link"),
    ("tar hardlink", "a.tar", lambda: tar(special("l", tarfile.LNKTYPE, "a")), "hard link"),
    ("tar char", "a.tar", lambda: tar(special("d", tarfile.CHRTYPE)), "device"),
    ("tar block", "a.tar", lambda: tar(special("d", tarfile.BLKTYPE)), "device"),
    ("tar fifo", "a.tar", lambda: tar(special("d", tarfile.FIFOTYPE)), "named pipe"),
    ("tar sparse", "a.tar", lambda: tar(special("d", tarfile.GNUTYPE_SPARSE)), "sparse"),
    ("tar contiguous", "a.tar", lambda: tar(special("d", tarfile.CONTTYPE)), "unknown type"),
    ("tar twice", "a.tar", lambda: tar(("a", b"1"), ("./a", b"2")), "twice"),
    ("tar file below file", "a.tar", lambda: tar(("a", b"1"), ("a/b", b"2")), "lies in the file"),
    ("tar file for dir", "a.tar", lambda: tar(("a/b", b"1"), ("a", b"2")), "twice"),
    ("tar root", "a.tar", lambda: tar((".", b"1")), "root"),
    ("tar newline", "a.tar", lambda: tar(("a\nb", b"1")), "control"),
    ("tar backslash", "a.tar", lambda: tar(("..\\evil", b"1")), "backslash"),
    ("tar drive", "a.tar", lambda: tar(("C:/evil", b"1")), "absolute"),
    ("tar long", "a.tar", lambda: tar(("x" * 300, b"1")), "too long"),
    ("tar deep", "a.tar", lambda: tar(("d/" * 40 + "a", b"1")), "too long"),
    ("tar pax path", "a.tar", lambda: pax(path="../evil"), "'..'"),
    ("tar pax sparse", "a.tar", lambda: pax(**{"GNU.sparse.major": "1"}), "sparse"),
    ("tar absurd header", "a.tar", absurd_extension, "extended header"),
    ("tar members", "a.tar", lambda: tar(*((f"f{i}", b"") for i in range(21))), "20"),
    ("tar large", "a.tar", lambda: tar(("a", bytes(2 << 20))), "1048576 bytes"),
    ("tar.gz bomb", "a.tar.gz", lambda: gzip.compress(tar(("a", bytes(500_000)))), "50 times"),
    ("zst bomb", "a.tar.zst", lambda: zstd(tar(("a", bytes(500_000)))), "50 times"),
    ("gz of zeros", "a.tgz", lambda: gzip.compress(tar() + bytes(1 << 20)), "50 times"),
    ("zip absolute", "a.zip", lambda: zipped(("/etc/evil", b"x")), "absolute"),
    ("zip dotdot", "a.zip", lambda: zipped(("../evil", b"x")), "'..'"),
    ("zip symlink", "a.zip", lambda: zipped((zip_mode("l", 0o120777), b"/etc")), "symbolic link"),
    ("zip device", "a.zip", lambda: zipped((zip_mode("d", 0o020666), b"")), "device"),
    ("zip fifo", "a.zip", lambda: zipped((zip_mode("d", 0o010666), b"")), "pipe"),
    ("zip encrypted", "a.zip", encrypted_zip, "encrypted"),
    ("zip null", "a.zip", lambda: renamed_zip(b"a\0evil"), "control"),
    ("zip backslash", "a.zip", lambda: renamed_zip(b"..\\evil"), "backslash"),
    ("zip bzip2", "a.zip", lambda: zipped(("a", b"x"), method=12), "deflate"),
    ("zip members", "a.zip", lambda: zipped(*((f"f{i}", b"") for i in range(21))), "20"),
    ("zip bomb", "a.zip", lambda: bomb_zip(1 << 20), "50 times"),
    ("zip large", "a.zip", lambda: zipped(("a", os.urandom(2 << 20))), "1048576 bytes"),
]


@pytest.mark.parametrize(
    ("name", "make", "says"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_a_hostile_archive_is_refused_by_its_member(
    tmp_path: Path, name: str, make: Callable[[], bytes], says: str
) -> None:
    place = tmp_path / "place"
    with pytest.raises(SourceRefused, match=says) as caught:
        run_out(place, name, make())
    assert name in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert not any(path.is_symlink() for path in place.rglob("*"))


def test_a_name_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zipped(("a", b"1"), ("a", b"2"))
    with pytest.raises(SourceRefused, match="'a' is there twice"):
        run_out(tmp_path, "a.zip", content)


DAMAGED: list[tuple[str, str, Callable[[], bytes]]] = [
    ("empty", "a.zip", lambda: b""),
    ("no archive", "a.tar", lambda: b"hello" * 200),
    ("tar cut in a member", "a.tar", lambda: tar(("a", bytes(5000)))[:2000]),
    ("tar without an end", "a.tar", lambda: tar(("a", bytes(5000)))[:5632]),
    ("tar checksum", "a.tar", lambda: b"X" + tar(("a", b"1"))[1:]),
    ("gzip cut", "a.tgz", lambda: gzip.compress(tar(("a", os.urandom(5000))))[:-4000]),
    ("zstd cut", "a.tar.zst", lambda: zstd(tar(("a", os.urandom(5000))))[:-4000]),
    ("zstd without its end", "a.tar.zst", lambda: zstd(tar(("a", os.urandom(50))))[:-40]),
    ("zstd with rubbish after", "a.tar.zst", lambda: zstd(tar(("a", b"1"))) + b"rubbish"),
    ("gzip without its checksum", "a.tgz", lambda: gzip.compress(tar(("a", b"1")))[:-5]),
    ("gzip with rubbish after", "a.tgz", lambda: gzip.compress(tar(("a", b"1"))) + b"rubbish"),
    ("zip cut", "a.zip", lambda: zipped(("a", os.urandom(5000)))[:3000]),
    ("zip wrong content", "a.zip", lambda: zipped(("a", b"hello"), method=0).replace(b"he", b"xx")),
    ("zip that declares less", "a.zip", lambda: bomb_zip(100)),
    ("zip with a huge list", "a.zip", huge_directory_zip),
]


@pytest.mark.parametrize(
    ("name", "make"), [row[1:] for row in DAMAGED], ids=[row[0] for row in DAMAGED]
)
def test_a_damaged_archive_is_said_to_be_damaged(
    tmp_path: Path, name: str, make: Callable[[], bytes]
) -> None:
    with pytest.raises(DamagedArtifact) as caught:
        run_out(tmp_path, name, make(), Policy())
    assert name in caught.value.message


TREE = {"run/adapter.bin": os.urandom(300_000), "run/deep/er/" + "n" * 200: b"long", "run/e": b""}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["tar", "gz", "zst"])
def test_a_sound_tar_comes_out_whole(
    tmp_path: Path, format: int, pack: Callable[[bytes], bytes]
) -> None:
    tree = {name: data for name, data in TREE.items() if format != tarfile.USTAR_FORMAT or data}
    if format == tarfile.USTAR_FORMAT:
        tree = {name.replace("n" * 200, "n" * 90): data for name, data in tree.items()}
    found = run_out(tmp_path, "mine.tgz", pack(tar(*tree.items(), format=format)), Policy())
    assert found == tmp_path / "mine" / "run"
    assert content(found.parent) == tree


def test_a_sound_zip_comes_out_whole(tmp_path: Path) -> None:
    found = run_out(tmp_path, "pissa_init.zip", zipped(*TREE.items()), Policy())
    assert found == tmp_path / "pissa_init" / "run"
    assert content(found.parent) == TREE


def test_files_at_the_top_keep_the_archives_name(tmp_path: Path) -> None:
    """Intake knows directories by name that are never an adapter."""
    found = run_out(tmp_path, "pissa_init.zip", zipped(("a", b"1"), ("b", b"2")))
    assert found == tmp_path / "pissa_init"


def test_what_packers_add_does_not_hide_the_directory(tmp_path: Path) -> None:
    found = run_out(tmp_path, "a.zip", zipped(("run/a", b"1"), ("__MACOSX/run/._a", b"2")))
    assert found.name == "run"


def test_several_gzip_streams_are_one_archive(tmp_path: Path) -> None:
    """As pigz and bgzip write them, with zeros after the last."""
    whole = tar(*TREE.items())
    packed = gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]) + bytes(700)
    assert content(run_out(tmp_path, "a.tgz", packed, Policy()).parent) == TREE


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def snapshot(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if not path.is_relative_to(root / "place/out")}


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "out", "canary", "/", "\\", "C:", "\0", "…"]),
    min_size=1,
    max_size=5,
).map("/".join)
KINDS = st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"L", b"g", b"S"])
LINKS = st.sampled_from(["..", "../canary", "/tmp", "a", ""])


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Headers of every kind with names of every kind, then a few bytes changed."""
    blocks = b""
    for name in draw(st.lists(NAMES, min_size=1, max_size=6)):
        data = draw(st.binary(max_size=600))
        info = tarfile.TarInfo(name.replace("\0", ""))
        info.type, info.linkname, info.size = draw(KINDS), draw(LINKS), len(data)
        blocks += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return _mutated(draw, blocks + bytes(1024))


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    members: list[tuple[zipfile.ZipInfo, bytes]] = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        mode = draw(st.sampled_from([0, 0o100644, 0o120777, 0o040755, 0o020666]))
        members.append((zip_mode(name.replace("\0", "?"), mode), draw(st.binary(max_size=300))))
    with pytest.MonkeyPatch.context() as patch:
        # Two names may come out the same: the archive with both is what is wanted.
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return _mutated(draw, zipped(*members))


def _mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(
    packed=st.one_of(
        tars(), zips(), tars().map(gzip.compress), tars().map(zstd), st.binary(max_size=2000)
    ),
    name=st.sampled_from(["out.tar", "out.zip", "out.tgz"]),
)
def test_no_archive_writes_outside_its_directory(packed: bytes, name: str) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        (root / "canary").write_text("alive")
        place = root / "place"
        place.mkdir()
        (place / name).write_bytes(packed)
        before = snapshot(root)
        try:
            unpack(place / name, place, SMALL)
        except AdapterctlError as refusal:
            assert name in refusal.message
        assert snapshot(root) - {str(place / "out")} == before - {str(place / "out")}
        assert (root / "canary").read_text() == "alive"
        for path in place.rglob("*"):
            assert path.is_dir() or path.is_file()
            assert not path.is_symlink()
    finally:
        shutil.rmtree(root)
