"""Keys may be limited: names they may use, an end, quotas; and the scope for requests is `infer`.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.registry.revisions import before

revision = "0007"
down_revision = before(revision)
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the limits, none for keys that are there, and renames `inference`."""
    op.add_column("keys", sa.Column("adapters", sa.Text, nullable=False, server_default="[]"))
    op.add_column("keys", sa.Column("expires_at", sa.String))
    op.add_column("keys", sa.Column("requests_per_minute", sa.Integer))
    op.add_column("keys", sa.Column("tokens_per_minute", sa.Integer))
    op.add_column("keys", sa.Column("concurrent", sa.Integer))
    op.execute("UPDATE keys SET scopes = replace(scopes, '\"inference\"', '\"infer\"')")


def downgrade() -> None:
    """Older code would let limited and expired keys do everything."""
    raise NotImplementedError("revision 0007 cannot be taken back: restore a copy instead")
