"""How a manifest is shown: how the adapter was made, where it came from, what it was made of."""

from __future__ import annotations

from adapters.models import Manifest, MergeRecord, Origin, TextQuality
from server.cli.output import short_digest


def provenance(manifest: Manifest) -> list[tuple[str, str]]:
    """Names and values, for `output.fields`."""
    return [
        ("format", manifest.format),
        ("trainer", _trainer(manifest)),
        ("trained on", manifest.base_by_trainer or "-"),
        ("precision", _precision(manifest)),
        ("targets", ", ".join(manifest.targets)),
        ("parameters", f"{manifest.parameters:,}"),
        ("scale", manifest.scale),
        ("source", manifest.source),
        ("source sha256", manifest.source_sha256),
        ("registered by", manifest.registered_by or "-"),
        *_lineage(manifest),
        *_merged(manifest.merged),
        *(("reason", reason) for reason in manifest.reasons),
        *(("note", text) for text in manifest.notes),
    ]


def _trainer(manifest: Manifest) -> str:
    """The version names what wrote the files, which need not be the trainer (PEFT, mostly)."""
    name, version = manifest.trainer, manifest.trainer_version
    if name is None or version is None:
        return version or name or "-"
    return version if version.lower().startswith(name.lower()) else f"{name} ({version})"


def _precision(manifest: Manifest) -> str:
    if manifest.precision is not None:
        return f"{manifest.precision} (from {manifest.precision_evidence or 'its files'})"
    if manifest.tensor_dtypes:
        return f"not said; the adapter's own tensors are {', '.join(manifest.tensor_dtypes)}"
    return "-"


def _lineage(manifest: Manifest) -> list[tuple[str, str]]:
    kinds = (
        ("composed from", manifest.composed_from),
        ("merged from", manifest.merged_from),
        ("extracted from", manifest.extracted_from),
    )
    return [(label, _origin(origin)) for label, origins in kinds for origin in origins]


def _merged(record: MergeRecord | None) -> list[tuple[str, str]]:
    """What was done to make it, and what it cost in quality."""
    if record is None:
        return []
    tools = ", ".join(f"{tool} {version}" for tool, version in sorted(record.tools.items()))
    return [
        ("quantization", _recipe(record)),
        ("made with", tools or "-"),
        ("reproducible", record.not_reproducible or "yes, from the same inputs and tools"),
        *((f"on {it.texts}", quality_line(it)) for it in record.quality),
    ]


def quality_line(found: TextQuality) -> str:
    """The key figures on one set of texts."""
    return (
        f"perplexity {_figure(found.perplexity)}, its reference's "
        f"{_figure(found.reference_perplexity)}; KL {_figure(found.kl)}, 99th percentile "
        f"{_figure(found.kl_p99)}; same token {found.agreement:.1%}"
    )


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _recipe(record: MergeRecord) -> str:
    if record.requantize == "none":
        return f"none ({record.dtype})"
    said = [f"{record.bits} bits" if record.bits else ""]
    if record.group_size is not None:
        said.append(
            "a scale for each row" if record.group_size < 0 else f"group {record.group_size}"
        )
    if record.symmetric is not None:
        said.append("symmetric" if record.symmetric else "asymmetric")
    if record.samples is not None:
        said.append(
            f"calibrated on {record.samples} texts of at most {record.sample_tokens} tokens, "
            f"seed {record.seed}"
        )
    return ", ".join([record.requantize, *(part for part in said if part), f"rest {record.dtype}"])


def _origin(origin: Origin) -> str:
    weight = "" if origin.weight is None else f" × {origin.weight:g}"
    return f"{origin.reference} ({short_digest(origin.digest)}){weight}"
