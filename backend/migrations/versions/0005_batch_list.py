"""An index for the list of batches."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_batch_owner_created_at_id"), "batch", ["owner", "created_at", "id"], unique=False
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_batch_owner_created_at_id"), table_name="batch")
