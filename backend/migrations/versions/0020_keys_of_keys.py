"""Keys that a key made: revoked with it, and counted as it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("made_by", sa.UUID(), nullable=True))
    op.create_foreign_key(op.f("fk_api_key_made_by"), "api_key", "api_key", ["made_by"], ["id"])
    op.create_index(op.f("ix_api_key_made_by"), "api_key", ["made_by"])


def downgrade() -> None:
    # What they may do hangs on the key that made them, which nothing would say any more.
    op.execute(
        "UPDATE api_key SET revoked_at = now() WHERE made_by IS NOT NULL AND revoked_at IS NULL"
    )
    op.drop_index(op.f("ix_api_key_made_by"), "api_key")
    op.drop_constraint(op.f("fk_api_key_made_by"), "api_key")
    op.drop_column("api_key", "made_by")
