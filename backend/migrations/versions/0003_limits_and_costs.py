"""Limits of keys, what a cost is made of, batches asked for twice, and objects found by key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_key", sa.Column("max_open_contents", sa.Integer(), nullable=True))
    op.add_column("api_key", sa.Column("daily_budget_usd", sa.Double(), nullable=True))
    op.create_table(
        "call_rate",
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", name=op.f("pk_call_rate")),
    )
    op.add_column("batch", sa.Column("idempotency_key", sa.String(), nullable=True))
    op.add_column("batch", sa.Column("request_sha256", sa.String(), nullable=True))
    op.create_index(
        "uq_batch_owner_idempotency_key",
        "batch",
        ["owner", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.add_column(
        "generation",
        sa.Column("cost_parts", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    )
    op.create_index(op.f("ix_generation_finished_at"), "generation", ["finished_at"])
    op.create_unique_constraint(
        op.f("uq_content_piece_object_key"), "content_piece", ["object_key"]
    )
    op.create_index(op.f("ix_lora_model_object_key"), "lora_model", ["object_key"])


def downgrade() -> None:
    op.drop_index(op.f("ix_lora_model_object_key"), table_name="lora_model")
    op.drop_constraint(op.f("uq_content_piece_object_key"), "content_piece", type_="unique")
    op.drop_index(op.f("ix_generation_finished_at"), table_name="generation")
    op.drop_column("generation", "cost_parts")
    op.drop_index(
        "uq_batch_owner_idempotency_key",
        table_name="batch",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.drop_column("batch", "request_sha256")
    op.drop_column("batch", "idempotency_key")
    op.drop_table("call_rate")
    op.drop_column("api_key", "daily_budget_usd")
    op.drop_column("api_key", "max_open_contents")
    op.drop_column("api_key", "requests_per_minute")
