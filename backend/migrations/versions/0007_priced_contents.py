"""An index for what an owner's pictures usually cost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_generation_priced",
        "generation",
        ["owner", "created_at"],
        unique=False,
        postgresql_where=sa.text("cost_usd IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_generation_priced", table_name="generation")
