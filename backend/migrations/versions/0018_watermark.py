"""Which watermark goes into a content's pictures, and which one each of them has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("watermark", sa.String(), nullable=True))
    op.add_column("content_piece", sa.Column("watermark", sa.String(), nullable=True))
    op.create_index(
        "ix_content_piece_watermark",
        "content_piece",
        ["watermark"],
        postgresql_where=sa.text("watermark IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_content_piece_watermark", "content_piece")
    op.drop_column("content_piece", "watermark")
    op.drop_column("generation", "watermark")
