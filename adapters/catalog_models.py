"""The part of the catalog that is about merged models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.models import Manifest, Registered
from adapters.registry.intake_port import OnStep
from adapters.serving.document import Serving
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


class ModelCatalog(AuditCatalog):
    """What can be done with the merged models of one store; `Catalog` is one of these."""

    layout: StoreLayout

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    @audited("register", "name")
    def register_model(
        self,
        model: Path,
        manifest: Manifest,
        *,
        name: str,
        base: str,
        tags: Sequence[str] = (),
        serving: Serving,
        share: bool = True,
        actor: str = "local",
        on_step: OnStep | None = None,
    ) -> Registered:
        """Makes the model directory `model` a version of `name`; `latest` and `tags` move to it.

        Its plain files become the version's; `serving` goes with them if it says anything. With
        `share` they do so by hard link, where the file system has them, and are read-only from then
        on, else as copies. The same content under the same name is the same version. Raises
        AlreadyExists where `name` is a base.
        """
        from adapters.registry.merged_models import register_model

        return register_model(
            self.layout,
            self._writer,
            model,
            manifest,
            name=name,
            base=base,
            tags=tags,
            serving=serving,
            share=share,
            actor=actor,
            tell=on_step or (lambda step: None),
        )

    def keep_report(self, digest: str, files: Mapping[str, bytes]) -> Path:
        """Keeps the quality report of a registered model; returns its directory."""
        from adapters.registry.merged_models import keep_report

        return keep_report(self.layout, digest, files)
