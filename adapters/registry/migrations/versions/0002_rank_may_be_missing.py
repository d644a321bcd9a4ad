"""A version need not have a rank: IA³ or a trained norm has nothing like one.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Lets versions.rank be NULL.

    A column beside the old one and not a copy of the table, which is what alembic would make:
    tags refer to versions, and dropping the old table in a transaction counts as losing them.
    """
    op.add_column("versions", sa.Column("new_rank", sa.Integer))
    op.execute("UPDATE versions SET new_rank = rank")
    op.drop_column("versions", "rank")
    op.alter_column("versions", "new_rank", new_column_name="rank")


def downgrade() -> None:
    """Versions without a rank have no place in the older table."""
    raise NotImplementedError("revision 0002 cannot be taken back: restore a copy instead")
