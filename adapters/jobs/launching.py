"""Starting the process of a job: a session of its own, its output in the job's log. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from adapters.compositions import refuse_composition
from adapters.errors import BaseNotFound
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.store.durable import store_io
from adapters.store.job_files import LOG_NAME
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.catalog_jobs import JobCatalog

# How many jobs of a store run at the same time; the others wait.
AT_ONCE_VARIABLE = "ADAPTERCTL_JOBS_AT_ONCE"


def launch(layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None) -> None:
    """Starts the process of a queued job and gives it the job's lock; returns at once.

    The process outlives this one: whoever wants to know looks at the registry. `at_once` is told
    to it in the environment; None leaves what is there. The caller closes its own `lock`.
    """
    environment = dict(os.environ)
    if at_once is not None:
        environment[AT_ONCE_VARIABLE] = str(at_once)
    root = layout.root.absolute()
    with store_io(layout.root), (layout.job(job_id) / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            # Safe path: a directory called `quantize` in the working directory is not ours.
            [sys.executable, "-P", "-m", "quantize.job", str(root), job_id, str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            # Ctrl-C in the terminal is for whoever follows the job.
            start_new_session=True,
        )
    # A server lives longer than its jobs: somebody has to hear of their end, or zombies stay.
    threading.Thread(target=process.wait, daemon=True).start()


def pinned(catalog: JobCatalog, order: MergeOrder | EvaluateOrder) -> MergeOrder | EvaluateOrder:
    """The order with its references as versions (NAME:v3), so that a tag may move meanwhile.

    Two orders are the same if their pinned forms are equal. Raises NotFound errors, and UsageError
    for compositions.
    """
    if isinstance(order, MergeOrder):
        return order.model_copy(update={"reference": _version(catalog, order.reference)})
    ends = {"reference": order.reference, "against": order.against}
    return order.model_copy(
        update={name: _version_or_model(catalog, text) for name, text in ends.items()}
    )


def _version(catalog: JobCatalog, reference: str) -> str:
    refuse_composition(reference)
    version = catalog.show(reference)
    return f"{version.adapter}:{version.label}"


def _version_or_model(catalog: JobCatalog, text: str) -> str:
    """A directory and a base are what they are."""
    if "/" in text:
        return text
    try:
        return catalog.base(text).name
    except BaseNotFound:
        return _version(catalog, text)
