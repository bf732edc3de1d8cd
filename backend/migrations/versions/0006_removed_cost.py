"""The cost of deleted contents, for the daily budget."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removed_cost",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", name=op.f("pk_removed_cost")),
    )


def downgrade() -> None:
    op.drop_table("removed_cost")
