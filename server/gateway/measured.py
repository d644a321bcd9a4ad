"""What quality reports measured of merged models, by the version that they were made of.

The reports are `STORE/reports/<hex>/report.json` (docs/quality.md), written by the jobs. Read here
field by field, as any file: a damaged or an older one says nothing, and costs nobody an answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.registry.snapshot import Snapshot
from adapters.store.layout import StoreLayout
from server.gateway.advice import Candidate

logger = logging.getLogger(__name__)

MERGED_MODEL = "merged-model"
# A report with many answers has some hundred kB.
_LIMIT = 64 * 1024 * 1024


class MeasuredModels:
    """The merged models of a store by the digest of the version that they were made of.

    A report is read again where its file is another one. Renewed by one thread, read by others.
    """

    def __init__(self, layout: StoreLayout, kv_cache_bytes: int = 0):
        """`kv_cache_bytes`: what a merged engine gets besides the model, in bytes."""
        self._layout = layout
        self._kv_cache = kv_cache_bytes
        # By the model's digest: which file was read (its time and size), and what it said.
        self._known: dict[str, tuple[tuple[int, int], tuple[str, Candidate] | None]] = {}

    def renew(self, snapshot: Snapshot) -> None:
        """Read the reports that are new. Looks at files: not for the event loop."""
        known = {}
        for adapter in snapshot.adapters.values():
            for version in adapter.versions.values():
                if version.method != MERGED_MODEL:
                    continue
                path = self._layout.report(version.digest) / "report.json"
                try:
                    status = path.stat()
                except OSError:
                    continue  # None was measured, or not yet.
                signature = status.st_mtime_ns, status.st_size
                before = self._known.get(version.digest)
                known[version.digest] = (
                    before
                    if before is not None and before[0] == signature
                    else (signature, self._read(version.digest, path))
                )
        self._known = known

    def candidates(self) -> dict[str, tuple[Candidate, ...]]:
        """By the digest of the version that was merged, as of the last `renew`."""
        found: dict[str, list[Candidate]] = {}
        for _, known in self._known.values():
            if known is not None:
                found.setdefault(known[0], []).append(known[1])
        return {source: tuple(candidates) for source, candidates in found.items()}

    def _read(self, digest: str, path: Path) -> tuple[str, Candidate] | None:
        try:
            with path.open("rb") as file:
                report = json.loads(file.read(_LIMIT))
            return _source(report), _candidate(digest, report, self._kv_cache)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("the quality report %s says nothing: %r", path, error)
            return None


def _source(report: Mapping[str, Any]) -> str:
    """The digest of the adapter's version that was merged."""
    for line in report["lineage"]:
        if line["role"] == "adapter":
            return str(line["origin"]["digest"])
    raise KeyError("lineage")


def _candidate(digest: str, report: Mapping[str, Any], kv_cache: int) -> Candidate:
    models = report["candidates"]
    model = next((one for one in models if one.get("digest") == digest), models[0])
    measurement = model["measurement"]
    speeds = {int(s["batch"]): float(s["tokens_per_second"]) for s in measurement["speeds"]}
    return Candidate(
        digest=digest,
        requantize=str(report["recipe"].get("requantize") or "none"),
        speeds={batch: speed for batch, speed in speeds.items() if batch > 0 and speed > 0},
        memory_bytes=int(measurement["peak_rss"]) + kv_cache,
    )
