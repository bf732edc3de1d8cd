"""What was written, where styles and wildcards made other words of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("written", JSONB()))


def downgrade() -> None:
    op.drop_column("generation", "written")
