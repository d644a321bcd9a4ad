"""Lanes: how versions are served, where a tag's requests go, and what became of both.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables of lanes; their columns are explained in schema.py."""
    op.create_table(
        "deployments",
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.Column("lane", sa.String),
        sa.Column("model", sa.String),
        sa.Column("requantize", sa.String, nullable=False),
        sa.Column("job", sa.String),
        sa.Column("problem", sa.Text),
        sa.Column("pinned", sa.Integer, nullable=False),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("version_id", name="pk_deployments"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_deployments_version_id"),
        sa.CheckConstraint("lane IN ('hot', 'merged')", name="ck_deployments_lane"),
    )
    op.create_index("ix_deployments_model", "deployments", ["model"])
    op.create_index("ix_deployments_job", "deployments", ["job"])
    op.create_table(
        "routes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("adapter_id", sa.Integer, nullable=False),
        sa.Column("tag", sa.String, nullable=False),
        sa.Column("splits", sa.Text, nullable=False),
        sa.Column("shadows", sa.Text, nullable=False),
        sa.Column("sticky", sa.String, nullable=False),
        sa.Column("limits", sa.Text),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_routes"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_routes_adapter_id"),
        sa.UniqueConstraint("adapter_id", "tag", name="uq_routes_adapter_tag"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "lane_history",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("adapter", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("old", sa.Text),
        sa.Column("new", sa.Text),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lane_history"),
    )
    op.create_index("ix_lane_history_adapter", "lane_history", ["adapter"])


def downgrade() -> None:
    """Older code has no place for lanes."""
    raise NotImplementedError("revision 0004 cannot be taken back: restore a copy instead")
