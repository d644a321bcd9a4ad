"""hf: the real hub library in a process of its own, against the hub's routes on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapters.errors import UsageError
from adapters.sources.hub import fetch_repository
from adapters.sources.policy import Policy
from tests.adapters.sources.hub_server import COMMIT, serve_repository
from tests.adapters.sources.web import Request, Web, status

WEIGHTS = os.urandom(200_000)
FILES = {
    "adapter_config.json": b'{"peft_type": "LORA"}',
    "adapter_model.safetensors": WEIGHTS,
    "README.md": b"# a card",
    "deep/tokenizer.json": b"{}",
    "optimizer.pt": b"state",
    "checkpoint-5/adapter_model.safetensors": b"older",
    "picture.png": b"png",
}
WANTED = ["README.md", "adapter_config.json", "adapter_model.safetensors", "deep/tokenizer.json"]

# The library reads its environment once, when it is imported.
CODE = """
import json, sys
from pathlib import Path
from adapters.errors import AdapterctlError
from adapters.sources.hub import fetch_repository
from adapters.sources.policy import Policy
told = []
place = Path(sys.argv[2])
try:
    found = fetch_repository(sys.argv[1], place, Policy(max_bytes=int(sys.argv[3])),
                             lambda *progress: told.append(progress))
except AdapterctlError as fault:
    print(json.dumps({"error": fault.message, "code": fault.code}))
else:
    files = [str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()]
    print(json.dumps({"place": str(found), "files": sorted(files), "told": told[-1]}))
assert "torch" not in sys.modules
"""


def fetched(
    web: Web, source: str, place: Path, limit: int = 1 << 30, **more: str
) -> dict[str, object]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = {"HF_HOME": str(place / ".home"), "HF_ENDPOINT": web.url, **more}
    (place / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, source, str(place / "work"), str(limit)],
        capture_output=True,
        text=True,
        env=kept | home | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_an_adapters_files_arrive_and_nothing_else(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", FILES, revision="v1.0")
    found = fetched(web, "hf:owner/repo@v1.0", tmp_path, HF_TOKEN="hf_s3cret")
    assert found["files"] == WANTED
    assert found["place"] == str(tmp_path / "work" / "repo")
    assert (tmp_path / "work/repo/adapter_model.safetensors").read_bytes() == WEIGHTS
    size = sum(len(FILES[name]) for name in WANTED)
    assert found["told"] == [size, size]
    asked = [headers for path, headers in web.seen if "owner" in path]
    assert len(asked) > 4
    assert {lowered(headers).get("authorization") for headers in asked} == {"Bearer hf_s3cret"}
    assert not any("optimizer" in path or "picture" in path for path, _ in web.seen)
    # Nothing is left in the user's own cache.
    assert not (tmp_path / ".home/hub/models--owner--repo").exists()


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_a_repository_that_is_too_large_is_not_begun(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", FILES)
    found = fetched(web, "hf:owner/repo", tmp_path, limit=100_000)
    assert found["code"] == "source_refused"
    assert "larger than the 100000 bytes" in str(found["error"])
    assert list((tmp_path / "work/repo").rglob("*.safetensors")) == []


@pytest.mark.parametrize("path", ["../../evil.json", "a/../../../evil.json"])
def test_a_listing_that_leads_out_is_refused(web: Web, tmp_path: Path, path: str) -> None:
    serve_repository(web, "owner/repo", {**FILES, path: b"{}"})
    found = fetched(web, "hf:owner/repo", tmp_path)
    assert "code" in found
    assert list(tmp_path.rglob("evil.json")) == []
    assert not (tmp_path.parent / "evil.json").exists()


@pytest.mark.parametrize(
    ("code", "headers", "says"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "does not exist on the hub, or is private"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "has no such revision"),
        (401, {"X_Error_Code": "RepoNotFound"}, "does not exist on the hub, or is private"),
        (403, {"X_Error_Code": "GatedRepo"}, "is gated"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(
    web: Web, tmp_path: Path, code: int, headers: dict[str, str], says: str
) -> None:
    web.serve("/api/models/owner/repo/revision/main", status(code, **headers))
    found = fetched(web, "hf:owner/repo", tmp_path)
    assert found["code"] == "source_unreadable"
    assert says in str(found["error"])


def test_a_repository_without_an_adapter(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", {"picture.png": b"png"})
    assert "no file that could belong" in str(fetched(web, "hf:owner/repo", tmp_path)["error"])


@pytest.mark.parametrize(
    "source",
    [
        *("hf:", "hf:repo", "hf:../b", "hf:a/b@", "hf:a/b@../x", "hf:a/b@-x"),
        *("hf:a/b/../c", "hf:a/b/.", "hf:a/b//c", "hf:a/b/c\\d", "hf:a/b/c\nd", "hf:a/b/c@"),
        "hf:a/b@x/../y",
        "hf:a/b" + "/c" * 17,
    ],
)
def test_what_is_no_repository(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write hf:OWNER/REPO"):
        fetch_repository(source, tmp_path, Policy(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_repository(web: Web, tmp_path: Path) -> None:
    """PEFT writes every adapter but `default` into a folder; its neighbours stay where they are."""
    inside = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    files = {f"runs/a b/{name}": content for name, content in inside.items()}
    serve_repository(web, "owner/repo", {**FILES, **files}, revision="refs/pr/1")
    found = fetched(web, "hf:owner/repo/runs/a b/@refs/pr/1", tmp_path)
    assert found["files"] == sorted(inside)
    assert found["place"] == str(tmp_path / "work" / "repo" / "runs" / "a b")
    assert found["told"] == [len(WEIGHTS) + 2] * 2
    assert not any("tokenizer" in path for path, _ in web.seen)


def test_a_checkpoint_that_is_named_is_taken(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", FILES)
    found = fetched(web, "hf:owner/repo/checkpoint-5", tmp_path)
    assert found["files"] == ["adapter_model.safetensors"]


@pytest.mark.parametrize("folder", ["nothing", "dee", "README.md"])
def test_a_folder_that_is_not_there(web: Web, tmp_path: Path, folder: str) -> None:
    serve_repository(web, "owner/repo", FILES)
    found = fetched(web, f"hf:owner/repo/{folder}", tmp_path)
    assert found["code"] == "source_unreadable"
    assert "does not exist: its folders are checkpoint-5, deep" in str(found["error"])


def test_ctrl_c_does_not_wait_for_the_hub(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", FILES)
    begun = threading.Event()

    def stall(request: Request) -> None:
        begun.set()
        time.sleep(30)

    weights = f"/owner/repo/resolve/{COMMIT}/adapter_model.safetensors"
    web.serve(weights, web.answers[weights][0], stall)
    (tmp_path / "work").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, "hf:owner/repo", str(tmp_path / "work"), "1000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=kept
        | {"HF_HOME": str(tmp_path / ".home"), "HF_ENDPOINT": web.url}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert begun.wait(60)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) != 0
    assert time.monotonic() - sent < 5


def test_a_commit_is_asked_for_as_it_is(web: Web, tmp_path: Path) -> None:
    serve_repository(web, "owner/repo", FILES)
    assert fetched(web, f"hf:owner/repo@{COMMIT}", tmp_path)["files"] == WANTED
