"""Takedowns, and each picture's likeness by which near copies are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("content_piece", sa.Column("likeness", sa.BigInteger(), nullable=True))
    op.create_index("ix_content_piece_sha256", "content_piece", ["sha256"])
    op.create_table(
        "takedown",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("contents", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_takedown_value", "takedown", ["value"])


def downgrade() -> None:
    op.drop_table("takedown")
    op.drop_index("ix_content_piece_sha256", table_name="content_piece")
    op.drop_column("content_piece", "likeness")
