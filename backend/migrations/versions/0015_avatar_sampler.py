"""An avatar's sampler, for requests that name none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("avatar", sa.Column("scheduler", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("avatar", "scheduler")
