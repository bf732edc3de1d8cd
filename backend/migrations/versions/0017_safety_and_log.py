"""What the safety checker found; a log of what was drawn that outlives contents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("generation", sa.Column("safety", JSONB(), nullable=True))
    op.create_table(
        "generation_record",
        sa.Column("content_id", UUID(as_uuid=True), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("prompt", sa.Text()),
        sa.Column("parameters", JSONB(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("loras", JSONB(), nullable=False),
        sa.Column("images", JSONB(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("content_id", name=op.f("pk_generation_record")),
    )
    op.create_index("ix_generation_record_created_at", "generation_record", ["created_at"])


def downgrade() -> None:
    op.drop_table("generation_record")
    op.drop_column("generation", "safety")
