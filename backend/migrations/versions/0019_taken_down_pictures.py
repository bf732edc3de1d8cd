"""What each takedown keeps of its pictures, so that none of them is drawn or sent again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "taken_down_picture",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("takedown_id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("likeness", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_taken_down_picture"),
        sa.ForeignKeyConstraint(
            ["takedown_id"],
            ["takedown.id"],
            name="fk_taken_down_picture_takedown_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_taken_down_picture_takedown_id", "taken_down_picture", ["takedown_id"])
    op.create_index("ix_taken_down_picture_sha256", "taken_down_picture", ["sha256"])
    op.execute(
        "INSERT INTO taken_down_picture (id, takedown_id, sha256, likeness) "
        "SELECT gen_random_uuid(), id, CASE WHEN kind = 'picture' THEN value END, "
        "CASE WHEN kind = 'near' THEN ('x' || value)::bit(64)::bigint END "
        "FROM takedown WHERE kind IN ('picture', 'near')"
    )


def downgrade() -> None:
    op.drop_table("taken_down_picture")
