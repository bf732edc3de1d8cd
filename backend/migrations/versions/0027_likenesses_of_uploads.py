"""By what a picture that was uploaded is known again where it was changed a little."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("input_image", sa.Column("likeness", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("input_image", "likeness")
