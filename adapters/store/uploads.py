"""What clients send to a server: kept in staging until it is registered, or its server ends.

staging/<unique>/upload/NAME   whole once it is there; the directory is a piece of work like every
                               other, so a server that dies leaves what gc removes
"""

from __future__ import annotations

import re
from pathlib import Path

from adapters.errors import NotFound, UsageError
from adapters.store.durable import store_io
from adapters.store.layout import StoreLayout
from adapters.store.publish import Staging

_ID = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}")
_PLACE = "upload"


def upload_id(staging: Staging) -> str:
    """The name by which a client speaks of what was sent into `staging`."""
    return staging.root.name


def keep_upload(layout: StoreLayout, staging: Staging, part: Path, name: str) -> None:
    """Makes a file that has arrived as a whole the upload; `name` is a safe file name."""
    place = staging.root / _PLACE
    with store_io(layout.root):
        place.mkdir()
        part.rename(place / name)


def find_upload(layout: StoreLayout, wanted: str) -> Path:
    """The uploaded file; raises UsageError for what is no id, NotFound for one that is gone."""
    if not _ID.fullmatch(wanted):
        raise UsageError(f"'upload:{wanted[:80]}' is no upload: POST /admin/v1/uploads names one")
    with store_io(layout.root):
        try:
            files = list((layout.staging / wanted / _PLACE).iterdir())
        except FileNotFoundError:
            files = []
    if len(files) != 1:
        raise no_upload(wanted)
    return files[0]


def no_upload(wanted: str) -> NotFound:
    """The refusal of an upload that is not there, or not any more."""
    return NotFound(
        f"there is no upload '{wanted[:80]}': it was registered, has expired or went with its "
        "server; send it again"
    )
