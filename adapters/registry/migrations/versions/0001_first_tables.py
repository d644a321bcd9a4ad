"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table of the first release."""
    op.create_table(
        "bases",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("architecture", sa.String, nullable=False),
        sa.Column("descriptor", sa.Text, nullable=False),
        sa.Column("added_at", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bases"),
        sa.UniqueConstraint("name", name="uq_bases_name"),
    )
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("default_tag", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.UniqueConstraint("name", name="uq_adapters_name"),
    )
    op.create_table(
        "numbers",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_numbers"),
    )
    _create_versions()
    op.create_table(
        "tags",
        sa.Column("adapter_id", sa.Integer, nullable=False),
        sa.Column("tag", sa.String, nullable=False),
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "tag", name="pk_tags"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_tags_adapter_id"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_tags_version_id"),
    )
    op.create_index("ix_tags_version_id", "tags", ["version_id"])
    op.create_table(
        "tag_history",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("adapter", sa.String, nullable=False),
        sa.Column("tag", sa.String, nullable=False),
        sa.Column("old", sa.Integer),
        sa.Column("new", sa.Integer),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tag_history"),
    )
    op.create_index("ix_tag_history_adapter_tag", "tag_history", ["adapter", "tag"])
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_changes"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("secret_sha256", sa.String, nullable=False),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("revoked_at", sa.String),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("adapter_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("base_id", sa.Integer, nullable=False),
        sa.Column("format", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("lane", sa.String, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("registered_at", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_versions_adapter_id"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name="fk_versions_base_id"),
        sa.UniqueConstraint("adapter_id", "number", name="uq_versions_adapter_number"),
        sa.UniqueConstraint("adapter_id", "digest", name="uq_versions_adapter_digest"),
        sa.CheckConstraint("number > 0", name="ck_versions_number"),
    )
    op.create_index("ix_versions_base_id", "versions", ["base_id"])
    op.create_index("ix_versions_digest", "versions", ["digest"])


def downgrade() -> None:
    """There is nothing before the first tables."""
    raise NotImplementedError("the first revision cannot be taken back: restore a copy instead")
