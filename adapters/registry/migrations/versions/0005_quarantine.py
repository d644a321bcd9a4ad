"""Quarantine: versions that answered with NaN or infinity.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A deployment says why no engine gets the version; NULL: it is not quarantined."""
    op.add_column("deployments", sa.Column("quarantined", sa.Text))


def downgrade() -> None:
    """Older code would serve what was quarantined."""
    raise NotImplementedError("revision 0005 cannot be taken back: restore a copy instead")
