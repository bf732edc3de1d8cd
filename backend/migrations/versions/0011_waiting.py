"""Contents that wait for their worker until a deadline, and turns between owners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = postgresql.JSONB(astext_type=sa.Text())
    for name, kind in (
        ("asked", json),
        ("deadline_at", sa.DateTime(timezone=True)),
        ("retry_at", sa.DateTime(timezone=True)),
        ("waiting_for", json),
    ):
        op.add_column("generation", sa.Column(name, kind, nullable=True))
    op.add_column(
        "generation", sa.Column("releases", sa.Integer(), server_default="0", nullable=False)
    )
    op.create_index(
        "ix_generation_line",
        "generation",
        ["owner", "created_at", "id"],
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_generation_job_id",
        "generation",
        ["job_id"],
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "queue_turn",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("began", sa.Double(), server_default="0", nullable=False),
        sa.Column("ended", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_queue_turn")),
    )


def downgrade() -> None:
    op.drop_table("queue_turn")
    op.drop_index("ix_generation_job_id", table_name="generation")
    op.drop_index("ix_generation_line", table_name="generation")
    for name in ("releases", "waiting_for", "retry_at", "deadline_at", "asked"):
        op.drop_column("generation", name)
