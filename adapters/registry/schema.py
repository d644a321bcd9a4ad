"""The tables, as the code of today wants them; `migrations/` brings older databases here."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# Named constraints: a later migration can only drop or change what has a name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# All times are ISO 8601 texts in UTC: they sort as text and are read without SQLAlchemy.

bases = Table(
    "bases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("digest", String, nullable=False),
    Column("path", String, nullable=False),
    Column("architecture", String, nullable=False),
    Column("descriptor", Text, nullable=False),  # BaseDescriptor as JSON
    Column("added_at", String, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("default_tag", String, nullable=False),
)

# Outlives the adapter: a number once given to a name means that content for good.
numbers = Table(
    "numbers",
    metadata,
    Column("name", String, primary_key=True),
    Column("last", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("base_id", ForeignKey("bases.id"), nullable=False),
    Column("format", String, nullable=False),
    Column("method", String, nullable=False),
    Column("lane", String, nullable=False),
    Column("rank", Integer),  # NULL where the method has nothing like one
    Column("size_bytes", Integer, nullable=False),
    Column("manifest", Text, nullable=False),  # Manifest as JSON
    Column("registered_at", String, nullable=False),
    UniqueConstraint("adapter_id", "number", name="uq_versions_adapter_number"),
    UniqueConstraint("adapter_id", "digest", name="uq_versions_adapter_digest"),
    CheckConstraint("number > 0", name="number"),
    Index("ix_versions_base_id", "base_id"),
    Index("ix_versions_digest", "digest"),
)

tags = Table(
    "tags",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("tag", String, primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Index("ix_tags_version_id", "version_id"),
)

# Append only, and by name, not by key: it outlives tags, versions and adapters.
tag_history = Table(
    "tag_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter", String, nullable=False),
    Column("tag", String, nullable=False),
    Column("old", Integer),
    Column("new", Integer),
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("reason", String, nullable=False),
    Index("ix_tag_history_adapter_tag", "adapter", "tag"),
)

# What a snapshot in another process must read again. AUTOINCREMENT: without gaps and never reused.
changes = Table(
    "changes",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("name", String, nullable=False),
    sqlite_autoincrement=True,
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("label", String, nullable=False),
    Column("secret_sha256", String, nullable=False),
    Column("scopes", String, nullable=False),  # JSON list
    Column("created_at", String, nullable=False),
    Column("revoked_at", String),
    Column("tenant", String, nullable=False, server_default="default"),
    Column("adapters", Text, nullable=False, server_default="[]"),  # JSON list; empty: all names
    Column("expires_at", String),
    # NULL: as much as it likes.
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrent", Integer),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("ordered", Text, nullable=False),  # the order as JSON
    Column("state", String, nullable=False),
    Column("turn", Integer, nullable=False),  # the place in the queue: the lowest is next
    Column("starts", Integer, nullable=False),  # how often it was begun or gone on with
    Column("cancel", Integer, nullable=False),  # 1: somebody wants it to end
    Column("step", String),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("actor", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("started_at", String),
    Column("ended_at", String),
    Column("result", Text),
    Column("error", Text),  # {"code", "message"}
    Index("ix_jobs_state", "state"),
)

# How a version is served, where somebody has said so.
deployments = Table(
    "deployments",
    metadata,
    Column("version_id", ForeignKey("versions.id"), primary_key=True),
    Column("lane", String),  # NULL: taken out of service
    Column("model", String),  # the digest of a merged model, which any adapter may have
    Column("requantize", String, nullable=False),
    Column("job", String),  # the id of the job that makes the model; the job may be gone
    Column("problem", Text),  # why it made none
    Column("pinned", Integer, nullable=False),  # 1: stays loaded
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("quarantined", Text),  # why no engine gets it; NULL: it is not
    CheckConstraint("lane IN ('hot', 'merged')", name="lane"),
    Index("ix_deployments_model", "model"),
    Index("ix_deployments_job", "job"),
)

# Where a part of a tag's requests goes. AUTOINCREMENT: an id never means another route later.
routes = Table(
    "routes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("tag", String, nullable=False),
    Column("splits", Text, nullable=False),  # list of Split as JSON
    Column("shadows", Text, nullable=False),  # list of Shadow as JSON
    Column("sticky", String, nullable=False),
    Column("limits", Text),  # Limits as JSON; NULL: nobody watches
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    UniqueConstraint("adapter_id", "tag", name="uq_routes_adapter_tag"),
    sqlite_autoincrement=True,
)

# Append only and by name, as tag_history.
lane_history = Table(
    "lane_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("old", Text),
    Column("new", Text),
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_lane_history_adapter", "adapter"),
)

# Append only: triggers refuse everything else, see the migration 0008.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("key", String),  # its id
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("request", String),
    Column("before", Text),  # JSON object
    Column("after", Text),  # JSON object
    Column("outcome", String, nullable=False),
    Column("message", Text),
    Index("ix_audit_at", "at"),
    Index("ix_audit_action_subject", "action", "subject"),
    sqlite_autoincrement=True,
)
