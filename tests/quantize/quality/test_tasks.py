"""Task files and servers that are wrong; tests/engine/test_tasks.py has the right ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    ServerUnreachable,
    ToolFailed,
    Unauthorized,
    UsageError,
)
from quantize.merging.merge import Watcher
from quantize.quality.task_files import read_task
from quantize.quality.tasks import run_tasks

GOOD = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}


def write_task(folder: Path, **settings: Any) -> Path:
    """The task GOOD with other settings (None: without), and its two items; JSON is YAML."""
    items = [{"question": "one", "answer": "two"}, {"question": "three", "answer": "four"}]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    document = {name: value for name, value in {**GOOD, **settings}.items() if value is not None}
    path = folder / f"{document.get('task', 'nameless')}.yaml"
    path.write_text(json.dumps(document))
    return path


@contextmanager
def server(*answers: tuple[int, dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers, the last one again and again; its URL, and what it got."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append({**body, "authorization": self.headers.get("authorization")})
            status, document = answers[min(len(asked), len(answers)) - 1]
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": None}}


def words(folder: Path) -> Path:
    """A directory with a tokenizer of a few words."""
    known = {word: at for at, word in enumerate(("<unk>", "one", "two", "three", "four"))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>"
    ).save_pretrained(folder)
    return folder


def failure(url: str, *tasks: Path, work: Path, key: str | None = None) -> AdapterctlError:
    with pytest.raises(AdapterctlError) as raised:
        run_tasks(url, "pirate", tasks, words(work), key, None, Watcher(), work / "log")
    assert "\n" not in raised.value.message
    return raised.value


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": None}, "describes no single task"),
        ({"group": "all", "task": ["a", "b"]}, "name the files of its tasks"),
        ({"output_type": "guess"}, "there are generate_until, multiple_choice"),
        ({"dataset_path": None}, "names no data"),
        ({"dataset_kwargs": None}, "give dataset_kwargs.data_files"),
        ({"dataset_path": "squad"}, "task files read local data only"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "'gone.jsonl', which is not there"),
        (
            {"dataset_kwargs": {"data_files": "https://example.com/a.jsonl"}},
            "'https://example.com/a.jsonl', which is not there",
        ),
        ({"include": "gone.yaml"}, "gone.yaml cannot be read: No such file"),
        ({"include": "sums.yaml"}, "includes itself"),
    ],
)
def test_a_wrong_task_file_is_told_before_anything_starts(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read_task(write_task(tmp_path, **settings))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no YAML"), ("- a", "no table of settings"), ("\0", "is no YAML")]
)
def test_what_is_no_task_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_task(path)


def test_an_included_file_is_read_too(tmp_path: Path) -> None:
    write_task(tmp_path, task="base", output_type="multiple_choice")
    path = tmp_path / "own.yaml"
    path.write_text("include: base.yaml\ntask: own\ndoc_to_choice: !function own.choices\n")
    found = read_task(path)
    assert (found.name, found.generates) == ("own", False)
    assert read_task(write_task(tmp_path, output_type=None)).generates


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with server((200, {})) as (url, _):
        pass
    away = failure(url, task, work=tmp_path)
    assert isinstance(away, ServerUnreachable)
    assert url in away.message
    assert isinstance(failure("localhost", task, work=tmp_path), UsageError)
    assert isinstance(failure("ftp://localhost", task, work=tmp_path), UsageError)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, AdapterNotFound), (401, Unauthorized), (500, ToolFailed)]
)
def test_what_the_server_refuses_at_once(
    tmp_path: Path, status: int, kind: type[AdapterctlError]
) -> None:
    task = write_task(tmp_path)
    with server((status, refusal("it is so"))) as (url, asked):
        # A client's own way to write it.
        refused = failure(f"{url}/v1/", task, work=tmp_path, key="secret")
    assert type(refused) is kind
    assert refused.message == "it is so"
    assert [question["authorization"] for question in asked] == ["Bearer secret"]


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    said = failure("http://127.0.0.1:9", task, task, work=tmp_path)
    assert "the same name" in said.message


def test_what_only_the_harness_notices(tmp_path: Path) -> None:
    """A function that is not there: of one task, though another comes first."""
    good = write_task(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"include: {good.name}\ntask: bad\ndoc_to_text: !function nothing.there\n")
    with server((200, {})) as (url, asked):
        said = failure(url, good, bad, work=tmp_path)
    assert isinstance(said, UsageError)
    assert str(bad) in said.message
    assert "nothing" in said.message
    # One token to see that it is there; no question.
    assert len(asked) == 1


def test_a_server_that_refuses_later_is_quoted(tmp_path: Path) -> None:
    busy, full = (429, refusal("too busy")), (400, refusal("the prompt is too long"))
    with server((200, {}), busy, full) as (url, asked):
        said = failure(url, write_task(tmp_path), work=tmp_path, key="secret")
    assert said.message == "the prompt is too long"
    _, first, *_ = asked
    assert (first["model"], first["echo"], first["logprobs"]) == ("pirate", True, 1)
    assert {question["authorization"] for question in asked} == {"Bearer secret"}
    # Busy is asked again, refused is not.
    assert len(asked) <= 4
