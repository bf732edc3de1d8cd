"""Thumbnails of pictures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("content_piece", sa.Column("thumbnail_key", sa.String(), nullable=True))
    op.create_unique_constraint(
        op.f("uq_content_piece_thumbnail_key"), "content_piece", ["thumbnail_key"]
    )


def downgrade() -> None:
    op.drop_constraint(op.f("uq_content_piece_thumbnail_key"), "content_piece", type_="unique")
    op.drop_column("content_piece", "thumbnail_key")
