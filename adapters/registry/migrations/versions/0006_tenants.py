"""Keys belong to a tenant; those that were made before belong to `default`.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.registry.revisions import before

revision = "0006"
down_revision = before(revision)
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds keys.tenant; snapshots of running servers are told of keys from here on."""
    op.add_column("keys", sa.Column("tenant", sa.String, nullable=False, server_default="default"))


def downgrade() -> None:
    """Older code would count every key's requests together."""
    raise NotImplementedError("revision 0006 cannot be taken back: restore a copy instead")
