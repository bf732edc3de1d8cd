"""Likenesses of crops among those by which what was taken down is known again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "taken_down_picture", sa.Column("bits", sa.Integer(), nullable=False, server_default="5")
    )
    op.add_column("taken_down_picture", sa.Column("shape", sa.Float()))


def downgrade() -> None:
    # Versions before this would hold every picture against a crop's likeness.
    op.execute("DELETE FROM taken_down_picture WHERE shape IS NOT NULL")
    op.drop_column("taken_down_picture", "shape")
    op.drop_column("taken_down_picture", "bits")
