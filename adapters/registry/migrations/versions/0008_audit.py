"""The audit log, to which rows are only added.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.registry.revisions import before

revision = "0008"
down_revision = before(revision)
branch_labels = None
depends_on = None

_NO_UPDATE = """
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END
"""
# INSERT OR REPLACE deletes without asking the trigger for deletions.
_NO_REPLACE = """
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END
"""
# Rows may go that are older than what a row about it says: that one is newer, and stays.
_NO_DELETE = """
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
WHEN OLD.at >= coalesce((SELECT max(subject) FROM audit WHERE action = 'audit.prune'), '')
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END
"""


def upgrade() -> None:
    """Makes the table and what guards it."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("key", sa.String),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("origin", sa.String, nullable=False),
        sa.Column("request", sa.String),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("message", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_action_subject", "audit", ["action", "subject"])
    op.execute(_NO_UPDATE)
    op.execute(_NO_REPLACE)
    op.execute(_NO_DELETE)


def downgrade() -> None:
    """Older code would leave no trace of what it does."""
    raise NotImplementedError("revision 0008 cannot be taken back: restore a copy instead")
