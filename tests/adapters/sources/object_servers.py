"""The requests that reading a bucket takes, answered over real HTTP on loopback.

For S3 a whole server is there (moto); for Google's and Azure's stores only what a reader asks for:
a listing, an object's headers, an object, a range of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.adapters.sources.web import Answer, Request, Web, status

MODIFIED = "2026-01-02T03:04:05.000Z"
HTTP_DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


@dataclass
class Bucket:
    """Objects by key, and who asks for them: `cut` ends each object's answer after so many bytes,
    `moved` gives every object another tag at its next request."""

    objects: dict[str, bytes]
    cut: int | None = None
    moved: bool = False
    ranges: list[str] = field(default_factory=list)

    def tag(self, key: str) -> str:
        digest = hashlib.md5(self.objects[key], usedforsecurity=False).hexdigest()
        return f'"{digest}{"-moved" if self.moved else ""}"'


def serve_gs(web: Web, name: str, bucket: Bucket) -> None:
    """Google's XML API, which is what the library speaks: the bucket is the path's first part."""
    web.serve(f"/{name}", lambda request: _listing(request, bucket, _gs_document))
    _serve_objects(web, f"/{name}", bucket)


def serve_az(web: Web, name: str, bucket: Bucket) -> None:
    """Azure's Blob service, with the endpoint's path empty."""
    web.serve(f"/{name}", lambda request: _listing(request, bucket, _az_document))
    _serve_objects(web, f"/{name}", bucket)


def _serve_objects(web: Web, root: str, bucket: Bucket) -> None:
    for key in bucket.objects:
        # The client for Google encodes all but letters and digits, slashes included.
        every = "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in key)
        for path in {quote(key), every}:
            web.serve(f"{root}/{path}", _object(bucket, key))


def serve_failure(web: Web, path: str, code: int, body: bytes = b"") -> None:
    """The same failure for every question about `path`."""
    web.serve(path, lambda request: request.reply(code, body) if body else status(code)(request))


def _listing(request: Request, bucket: Bucket, document: Callable[[Bucket, str], str]) -> None:
    query = parse_qs(urlsplit(request.path).query)
    content = document(bucket, query.get("prefix", [""])[0]).encode()
    request.reply(200, content, Content_Type="application/xml")


def _gs_document(bucket: Bucket, prefix: str) -> str:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED}</LastModified>"
        f"<ETag>{escape(bucket.tag(key))}</ETag><Size>{len(content)}</Size></Contents>"
        for key, content in bucket.objects.items()
        if key.startswith(prefix)
    )
    return f"<ListBucketResult><Prefix>{escape(prefix)}</Prefix>{entries}</ListBucketResult>"


def _az_document(bucket: Bucket, prefix: str) -> str:
    entries = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{HTTP_DATE}</Last-Modified>"
        f"<Content-Length>{len(content)}</Content-Length><Etag>{escape(bucket.tag(key))}</Etag>"
        "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for key, content in bucket.objects.items()
        if key.startswith(prefix)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://x/" '
        f'ContainerName="c"><Blobs>{entries}</Blobs><NextMarker/></EnumerationResults>'
    )


def _object(bucket: Bucket, key: str) -> Answer:
    def answer(request: Request) -> None:
        content, tag = bucket.objects[key], bucket.tag(key)
        wanted = request.headers.get("If-Match")
        if wanted is not None and wanted != tag:
            request.reply(412)
            return
        asked = request.headers.get("Range") or request.headers.get("x-ms-range") or ""
        if request.command == "GET":
            bucket.ranges.append(f"{unquote(key)} {asked}".strip())
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        headers = {"ETag": tag, "Last_Modified": HTTP_DATE, "x-ms-blob-type": "BlockBlob"}
        if asked:
            headers["Content_Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        headers["Content_Length"] = str(len(content) - begin)
        part = content[begin:] if bucket.cut is None else content[begin : begin + bucket.cut]
        request.reply(206 if asked else 200, part, **headers)

    return answer
