"""s3, gs and az: the real client library over real HTTP, to a whole S3 server and to small ones."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from adapters.catalog import Catalog
from adapters.errors import DamagedArtifact, SourceRefused, SourceUnreadable, UsageError
from adapters.sources.policy import Policy
from adapters.sources.schemes import fetch
from adapters.sources.uri import parse_source
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.adapters.sources.object_servers import Bucket, serve_az, serve_failure, serve_gs
from tests.adapters.sources.test_register_sources import tar_gz_of
from tests.adapters.sources.web import Request, Web

WEIGHTS = os.urandom(3_000_000)
FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": WEIGHTS,
    "deep/er/tokenizer.json": b"[1]",
    "optimizer.pt": b"state",
    "checkpoint-5/adapter_model.safetensors": b"older",
}
WANTED = ["adapter_config.json", "adapter_model.safetensors", "deep/er/tokenizer.json"]
QUICK = Policy(timeout=5, attempts=3, backoff=0.05)
VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def _nobodys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client for filling buckets; `mine` is there, and the environment reads it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto)
    client.create_bucket(Bucket="mine")
    yield client
    for item in client.list_objects_v2(Bucket="mine").get("Contents", ()):
        client.delete_object(Bucket="mine", Key=item["Key"])


def put(s3: Any, **objects: bytes) -> None:
    for key, content in objects.items():
        s3.put_object(Bucket="mine", Key=key, Body=content)


def fetched(source: str, place: Path, policy: Policy = QUICK, **more: Any) -> Path:
    place.mkdir()
    return fetch(parse_source(source), place, policy, lambda _: None, more.get("progress"))


def files_in(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_is_an_adapters_directory(s3: Any, tmp_path: Path, end: str) -> None:
    put(s3, **{f"runs/bot/{name}": content for name, content in FILES.items()})
    # A neighbour, and what a web console writes to show an empty folder.
    put(s3, **{"runs/bot2/adapter_config.json": b"other", "runs/bot/": b""})
    told: list[tuple[int, int]] = []
    found = fetched(
        f"s3://mine/runs/bot{end}", tmp_path / "place", progress=lambda *p: told.append(p)
    )
    assert found.name == "bot"
    assert files_in(found) == {name: FILES[name] for name in WANTED}
    size = sum(len(FILES[name]) for name in WANTED)
    assert told[-1] == (size, size)
    assert told == sorted(told)


def test_keys_are_taken_as_they_stand(s3: Any, tmp_path: Path) -> None:
    put(s3, **{"a b/%41+ü.json": b"odd", "whole bucket.json": b"x"})
    assert files_in(fetched("s3://mine/a b", tmp_path / "1")) == {"%41+ü.json": b"odd"}
    found = fetched("s3://mine/a b/%41+ü.json", tmp_path / "2")
    assert (found.name, found.read_bytes()) == ("_41+_.json", b"odd")
    found = fetched("s3://mine", tmp_path / "3")
    assert sorted(files_in(found)) == ["a b/%41+ü.json", "whole bucket.json"]


def test_one_object_is_a_file_and_an_archive_a_directory(s3: Any, tmp_path: Path) -> None:
    directory = write_source(tmp_path / "source", 1)
    content = tar_gz_of(directory)
    put(s3, **{"one.gguf": WEIGHTS, "my bot.tar.gz": content})
    found = fetched("s3://mine/one.gguf", tmp_path / "1")
    assert (found.name, found.read_bytes()) == ("one.gguf", WEIGHTS)
    digest = hashlib.sha256(content).hexdigest()
    found = fetched(f"s3://mine/my bot.tar.gz#sha256={digest}", tmp_path / "2")
    assert files_in(found) == files_in(directory)
    assert found.name == "my_bot"
    with pytest.raises(DamagedArtifact, match=f"its sha256 is {digest}"):
        fetched(f"s3://mine/my bot.tar.gz#sha256={'0' * 64}", tmp_path / "3")


def test_a_prefix_gives_the_directorys_version(s3: Any, tmp_path: Path) -> None:
    directory = write_source(tmp_path / "source", 1)
    put(s3, **{f"bot/{name}": content for name, content in files_in(directory).items()})
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        plain = catalog.register(str(directory), name="plain", base="small")
        found = catalog.register("s3://mine/bot/", name="bot", base="small")
        assert found.digest == plain.digest
        assert catalog.version_manifest("bot").source == "s3://mine/bot"
        assert catalog.inspect("s3://mine/bot").problems == ()
        assert list(catalog.layout.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "limits", "says"),
    [
        ("s3://mine/bot", replace(QUICK, max_bytes=1000), "larger than the 1000 bytes"),
        (
            "s3://mine/bot/adapter_model.safetensors",
            replace(QUICK, max_bytes=1000),
            "larger than the 1000",
        ),
        ("s3://mine/bot", replace(QUICK, max_members=3), "more than 3 objects"),
    ],
)
def test_limits_hold_before_anything_is_downloaded(
    s3: Any, tmp_path: Path, source: str, limits: Policy, says: str
) -> None:
    put(s3, **{f"bot/{name}": content for name, content in FILES.items()})
    with pytest.raises(SourceRefused, match=says):
        fetched(source, tmp_path / "place", limits)
    assert files_in(tmp_path / "place") == {}


@pytest.mark.parametrize(
    "key", ["bot/../../evil.json", "bot//a.json", "bot/./a.json", "bot/a\\b.json"]
)
def test_keys_that_are_no_paths_are_refused(s3: Any, tmp_path: Path, key: str) -> None:
    put(s3, **{"bot/adapter_config.json": b"{}", key: b"{}"})
    with pytest.raises(SourceRefused):
        fetched("s3://mine/bot", tmp_path / "place")
    assert files_in(tmp_path) == {}


def test_an_object_within_another_is_refused(s3: Any, tmp_path: Path) -> None:
    put(s3, **{"bot/a.json": b"{}", "bot/a.json/b/c.json": b"{}"})
    with pytest.raises(SourceRefused, match=r"'a.json/b/c.json' lies in the file 'a.json'"):
        fetched("s3://mine/bot", tmp_path / "place")
    assert files_in(tmp_path) == {}


def test_what_is_not_there(s3: Any, tmp_path: Path) -> None:
    put(s3, **{"bot/picture.png": b"png"})
    for source, says in (
        ("s3://nobodys/bot", r"there is no bucket 'nobodys'"),
        ("s3://mine/other", r"there is nothing at s3://mine/other$"),
        ("s3://mine/bo", r"there is nothing at s3://mine/bo$"),
        ("s3://mine/bot", r"has no file that could belong to an adapter"),
    ):
        with pytest.raises(SourceUnreadable, match=says):
            fetched(source, tmp_path / source.replace("/", "_"))


def test_an_anonymous_reader_of_a_private_bucket(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"bot/adapter_config.json": b"{}"})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(SourceUnreadable, match="no credentials for s3://mine/bot: set AWS_ACCESS"):
        fetched("s3://mine/bot", tmp_path / "place")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(SourceUnreadable, match=r"access to s3://mine/bot is denied \(.*403\)"):
        fetched("s3://mine/bot", tmp_path / "again")


Setup = Callable[[Web, str, Bucket], None]


@dataclass(frozen=True)
class Other:
    """Google's or Azure's store: how the environment leads to it, how it is played here."""

    scheme: str
    environment: dict[str, str]
    serve: Setup

    def lead(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value.replace("URL", url))


GS = Other("gs", {"GOOGLE_BASE_URL": "URL", "GOOGLE_SKIP_SIGNATURE": "true"}, serve_gs)
AZ = Other(
    "az",
    {
        "AZURE_STORAGE_ENDPOINT": "URL",
        "AZURE_STORAGE_ACCOUNT_NAME": "me",
        "AZURE_STORAGE_ACCOUNT_KEY": "czNjcmV0",
    },
    serve_az,
)


@pytest.fixture(params=[GS, AZ], ids=["gs", "az"])
def other(request: pytest.FixtureRequest, web: Web, monkeypatch: pytest.MonkeyPatch) -> Other:
    found = request.param
    assert isinstance(found, Other)
    found.lead(monkeypatch, web.url)
    return found


def bucket_of(prefix: str) -> Bucket:
    return Bucket({f"{prefix}/{name}": content for name, content in FILES.items()})


def test_googles_and_azures_stores(other: Other, web: Web, tmp_path: Path) -> None:
    other.serve(web, "mine", bucket_of("runs/bot"))
    found = fetched(f"{other.scheme}://mine/runs/bot", tmp_path / "1")
    assert files_in(found) == {name: FILES[name] for name in WANTED}
    single = f"{other.scheme}://mine/runs/bot/adapter_model.safetensors"
    assert fetched(single, tmp_path / "2").read_bytes() == WEIGHTS


def test_what_breaks_off_is_taken_up_where_it_ended(other: Other, web: Web, tmp_path: Path) -> None:
    """More often than the attempts: each gets further."""
    bucket = bucket_of("bot")
    bucket.cut = 400_000
    other.serve(web, "mine", bucket)
    found = fetched(f"{other.scheme}://mine/bot", tmp_path / "place")
    assert files_in(found) == {name: FILES[name] for name in WANTED}
    begun = [entry for entry in bucket.ranges if entry.startswith("bot/adapter_model")]
    assert len(begun) >= 8
    assert len(set(begun)) == len(begun)


def test_what_changes_meanwhile_is_not_mixed(other: Other, web: Web, tmp_path: Path) -> None:
    bucket = bucket_of("bot")
    other.serve(web, "mine", bucket)

    def move(done: int, total: int) -> None:
        bucket.moved = True

    with pytest.raises(SourceUnreadable, match="changed while it was read"):
        fetched(f"{other.scheme}://mine/bot", tmp_path / "place", progress=move)


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (403, b"<Error><Code>AccessDenied</Code></Error>", "denied (AccessDenied)"),
        (403, b"<Error><Code>AuthenticationFailed</Code></Error>", "(AuthenticationFailed)"),
        (401, b"", "is denied (401)"),
        (404, b"<Error><Code>ContainerNotFound</Code></Error>", "there is no"),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", "there is no"),
        (400, b"<Error><Code>InvalidUri</Code></Error>", "answers 400 InvalidUri"),
        (503, b"", "answers 503"),
        (200, b"this is no XML", "cannot be read"),
    ],
)
def test_each_refusal_is_one_sentence_without_a_secret(
    other: Other, web: Web, tmp_path: Path, code: int, body: bytes, says: str
) -> None:
    serve_failure(web, "/mine", code, body)
    with pytest.raises(SourceUnreadable) as caught:
        fetched(f"{other.scheme}://mine/bot", tmp_path / "place", replace(QUICK, attempts=2))
    assert says in caught.value.message
    assert f"{other.scheme}://mine/bot" in caught.value.message
    for secret in ("czNjcmV0", "127.0.0.1", "\n"):
        assert secret not in caught.value.message


def test_a_server_that_says_nothing_is_given_up(other: Other, web: Web, tmp_path: Path) -> None:
    web.serve("/mine/bot", lambda _: time.sleep(3))
    policy = replace(QUICK, timeout=0.3, attempts=2)
    with pytest.raises(SourceUnreadable, match="does not answer in time"):
        fetched(f"{other.scheme}://mine/bot", tmp_path / "place", policy)


@pytest.mark.parametrize(
    ("variable", "scheme"),
    [("AWS_ENDPOINT_URL", "s3"), ("GOOGLE_BASE_URL", "gs"), ("AZURE_STORAGE_ENDPOINT", "az")],
)
@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://host", "https://", "http://user:s3cret@host", "http://h:99999"]
)
def test_an_endpoint_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, scheme: str, url: str
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(UsageError, match=f"{variable} is no endpoint") as caught:
        fetched(f"{scheme}://mine/bot", tmp_path / "place")
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("scheme", "environment"),
    [
        ("s3", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}),
        ("gs", {"GOOGLE_SKIP_SIGNATURE": "true"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "me", "AZURE_SKIP_SIGNATURE": "true"}),
    ],
)
def test_an_endpoint_where_nothing_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str, environment: dict[str, str]
) -> None:
    endpoints = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
    for name, value in {**environment, endpoints[scheme]: "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceUnreadable, match="no connection to its server"):
        fetched(f"{scheme}://mine/bot", tmp_path / "place", replace(QUICK, attempts=1))


CODE = """
import sys
from pathlib import Path
from adapters.sources.policy import Policy
from adapters.sources.schemes import fetch
from adapters.sources.uri import parse_source
fetch(parse_source("gs://mine/bot"), Path(sys.argv[1]), Policy(timeout=60),
      lambda _: None, lambda done, _: print(done, flush=True))
"""


def test_ctrl_c_does_not_wait_for_the_store(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GS.lead(monkeypatch, web.url)
    bucket = bucket_of("bot")
    serve_gs(web, "mine", bucket)
    begun = threading.Event()

    def stall(_: Request) -> None:
        begun.set()
        time.sleep(30)

    web.serve("/mine/bot%2Fadapter%5Fmodel%2Esafetensors", stall)
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert begun.wait(60)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode != 0
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert time.monotonic() - sent < 10


async def test_a_caller_with_a_loop_of_its_own(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: there a second loop cannot run in the same thread."""
    GS.lead(monkeypatch, web.url)
    serve_gs(web, "mine", bucket_of("bot"))
    assert sorted(files_in(fetched("gs://mine/bot", tmp_path / "place"))) == WANTED
