"""The few routes of the hub's API that a download uses, over real HTTP on loopback."""

from __future__ import annotations

import hashlib
import json
from urllib.parse import quote

from tests.adapters.sources.web import Answer, Request, Web

COMMIT = "c0ffee" + "0" * 34


def serve_repository(
    web: Web, repository: str, files: dict[str, bytes], *, revision: str = "main"
) -> None:
    """`files` by path; the revision leads to COMMIT, which is what the files are asked by."""
    api = f"/api/models/{repository}"
    siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
    for name in (revision, COMMIT):
        document = {"id": repository, "sha": COMMIT, "siblings": siblings}
        web.serve(f"{api}/revision/{quote(name, safe='')}", _document(document))
    entries = [
        {"type": "file", "path": path, "size": len(content), "oid": _id(content)}
        for path, content in files.items()
    ]
    web.serve(f"{api}/tree/{COMMIT}", _document(entries))
    for path, content in files.items():
        web.serve(f"/{repository}/resolve/{COMMIT}/{quote(path)}", _file(content))


def _id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _document(document: object) -> Answer:
    content = json.dumps(document).encode()
    return lambda request: request.reply(200, content, Content_Type="application/json")


def _file(content: bytes) -> Answer:
    def answer(request: Request) -> None:
        begin = int(request.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        headers = {"ETag": f'"{_id(content)}"', "X_Repo_Commit": COMMIT}
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        request.reply(206 if begin else 200, content[begin:], **headers)

    return answer
