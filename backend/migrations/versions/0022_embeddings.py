"""Embeddings: textual inversions that owners keep beside their LoRAs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "embedding",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("vectors", sa.Integer(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.UniqueConstraint("owner", "sha256", name="uq_embedding_owner_sha256"),
    )
    op.create_index("ix_embedding_object_key", "embedding", ["object_key"])
    op.create_index(
        "uq_embedding_owner_word", "embedding", ["owner", sa.text("lower(name)")], unique=True
    )


def downgrade() -> None:
    op.drop_table("embedding")
