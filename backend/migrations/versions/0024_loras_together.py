"""For which LoRAs each owner's last content was: the next ones for the same may follow it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("queue_turn", sa.Column("loras", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("queue_turn", "loras")
