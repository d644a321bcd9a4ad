"""What a SOURCE is: every text gives an address or a UsageError, and none shows a secret."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterctlError, UsageError
from adapters.sources.archives import safe_name, tame_name
from adapters.sources.hub import parse_repository
from adapters.sources.members import member_parts
from adapters.sources.uri import (
    OBJECT_SCHEMES,
    Address,
    bucket_and_key,
    completed_source,
    parse_source,
    public_form,
    scheme_of,
)

DIGEST = "AB" * 32


@pytest.mark.parametrize(
    ("source", "bucket", "key"),
    [
        ("s3://mine", "mine", ""),
        ("s3://mine/", "mine", ""),
        ("S3://mine/a/b/", "mine", "a/b"),
        ("gs://my_bucket.example/a b/ü%2F@1=2:3", "my_bucket.example", "a b/ü%2F@1=2:3"),
        ("az://$root/a", "$root", "a"),
        ("az://my-container/..a/b..", "my-container", "..a/b.."),
    ],
)
def test_buckets_and_keys(source: str, bucket: str, key: str) -> None:
    assert bucket_and_key(source) == (bucket, key)
    scheme = source.partition(":")[0].lower()
    shown = f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"
    assert parse_source(source) == Address(scheme, shown, shown)
    assert parse_source(shown) == parse_source(source)


@pytest.mark.parametrize(
    "rest",
    [
        *("", "/", "/a", "a", "-ab/x", "../x", "a..b/x", "bück/x", "b ck/x", "buc\nket/x"),
        *("mine//a", "mine/a//b", "mine/a//", "mine/./a", "mine/a/..", "mine/../a"),
        *("mine/a#b", "mine/a\tb", "mine/a\x00", "mine/\u202ea", "mine/" + "x" * 1025),
        *("mine:80/a", "user:s3cret@mine/a", "user:s3c/ret@mine/a", "AKIA@mine/a"),
        *("mine/a?X-Amz-Signature=s3cret", "mine?sig=s3cret", "mine/a?versionId=1"),
    ],
)
def test_what_is_no_object(rest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(f"s3://{rest}")
    for secret in ("s3cret", "ret@", "AKIA", "user"):
        assert secret not in caught.value.message.replace("with a user, password", "")


def test_a_checksum_may_follow_whatever_is_one_file() -> None:
    for rest in ("/a/b.zip", "s3://mine/b.zip", "gs://mine/b", "upload:1-aa"):
        found = parse_source(f"{rest}#sha256={DIGEST}")
        assert (found.text, found.shown, found.sha256) == (rest, rest, DIGEST.lower())
        assert parse_source(rest).sha256 is None
    assert parse_source("/a#b").text == "/a#b"
    for source in ("/a#sha256=12", "s3://mine/a#sha256=", f"/a#sha256={DIGEST}0"):
        with pytest.raises(UsageError, match="64 hex digits"):
            parse_source(source)
    with pytest.raises(UsageError, match="a commit is one"):
        parse_source(f"hf:owner/repo#sha256={DIGEST}")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("hf:o/r", ("o/r", "", None)),
        ("hf:o/r@refs/pr/1", ("o/r", "", "refs/pr/1")),
        ("hf:o/r/a", ("o/r", "a", None)),
        ("hf:o/r/a/b c/@v1", ("o/r", "a/b c", "v1")),
    ],
)
def test_repositories_and_folders(source: str, found: tuple[str, str, str | None]) -> None:
    assert parse_repository(source) == found


@pytest.mark.parametrize("path", ["~nobody-of-this-name/a", "/a\0b"])
def test_a_path_that_cannot_be_one(path: str) -> None:
    with pytest.raises(UsageError):
        parse_source(path)
    with pytest.raises(UsageError):
        completed_source(path)


TEXTS = st.text(st.sampled_from("ab/.:@?#%$~ -_\\\n\0é\u202e[]") | st.characters(), max_size=60)
SCHEMES = st.sampled_from(["s3://", "gs://", "az://", "https://", "hf:", "upload:", "", "x://"])


@given(SCHEMES, TEXTS)
@settings(max_examples=500)
def test_every_text_is_an_address_or_a_usage_error(scheme: str, text: str) -> None:
    source = scheme + text
    public_form(source)
    try:
        found = parse_source(source)
    except UsageError:
        return
    if found.scheme in OBJECT_SCHEMES:
        bucket, key = bucket_and_key(found.text)
        assert "/" not in bucket
        assert not {"", ".", ".."} & set(key.split("/")) or not key
        assert found.shown == found.text
        assert parse_source(found.text) == found


@given(TEXTS)
@settings(max_examples=500)
def test_every_hub_source_is_a_repository_or_a_usage_error(text: str) -> None:
    try:
        repository, folder, revision = parse_repository(f"hf:{text}")
    except UsageError:
        return
    assert repository.count("/") == 1
    assert not folder or "/".join(member_parts("it", folder)) == folder
    assert revision is None or ".." not in revision.split("/")


@given(TEXTS, TEXTS, SCHEMES.filter(lambda s: s in ("s3://", "gs://", "az://", "https://")))
@settings(max_examples=300)
def test_a_password_is_never_shown(before: str, after: str, scheme: str) -> None:
    secret = "S3cretS3cret"
    for source in (
        f"{scheme}user:{secret}@mine/{after}",
        f"{scheme}mine/{after.replace('#', '')}?sig={secret}",
    ):
        assert secret not in public_form(source)
        try:
            parse_source(source)
        except AdapterctlError as fault:
            assert secret not in fault.message


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_a_tamed_name_is_safe_and_ends_alike(name: str) -> None:
    found = tame_name(name)
    assert safe_name(found, "") == found
    assert tame_name(found) == found
    if name.strip("._+-") and not name.startswith((".", "+", "-")):
        assert tame_name(f"{name}.tar.gz").endswith(".tar.gz")


def test_what_has_no_slashes_is_a_scheme_only_if_it_is_ours() -> None:
    assert [scheme_of(text) for text in ("hf:a", "upload:a", "c:a", "a:b/c")] == [
        "hf",
        "upload",
        None,
        None,
    ]
