"""Merged models in the registry whose files are a few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.catalog import Catalog
from adapters.frozen import Lane
from adapters.lanes.models import MERGED_MODEL
from adapters.models import Manifest, MergeRecord, Origin
from adapters.serving.document import Serving


def write_files(root: Path, text: str) -> Path:
    """A model's directory; its digest depends on `text` alone."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "model.safetensors").write_text(text)
    (root / "config.json").write_text("{}")
    return root


def merged(
    catalog: Catalog, root: Path, of: str = "bot:v1", name: str = "bot-merged", **record: Any
) -> str:
    """Registers a merged model of the version `of`; its digest."""
    source = catalog.show(of)
    made = MergeRecord(
        **{"requantize": "none", "dtype": "bfloat16", "base_weights": "original", **record}
    )
    registered = catalog.register_model(
        write_files(root / "model", f"{of} {made}"),
        Manifest(
            format="hugging-face",
            method=MERGED_MODEL,
            lane=Lane.MERGED,
            reasons=("it is a whole model",),
            rank=None,
            targets=(),
            parameters=3,
            scale="-",
            base_digest=source.base_digest,
            base_by_trainer=None,
            trainer=None,
            trainer_version=None,
            source=f"merge of {of}",
            source_sha256=source.digest.removeprefix("sha256:"),
            merged_from=(
                Origin(reference=source.base, digest=source.base_digest),
                Origin(reference=of, digest=source.digest),
            ),
            merged=made,
        ),
        name=name,
        base=source.base,
        serving=Serving(),
        share=False,
    )
    return registered.digest
