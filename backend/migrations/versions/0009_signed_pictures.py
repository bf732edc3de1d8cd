"""The hash of a picture's file, which differs from the picture's own once it is signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("content_piece", sa.Column("file_sha256", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("content_piece", "file_sha256")
