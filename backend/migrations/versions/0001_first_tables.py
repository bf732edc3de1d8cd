"""First tables, and the job queue's own (procrastinate 3.10)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from procrastinate.schema import SchemaManager
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def create_job_queue() -> None:
    """The queue's schema, where it is not there yet: sent as it is, since it holds % signs."""
    connection = op.get_bind()
    if sa.inspect(connection).has_table("procrastinate_jobs"):
        return
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute(SchemaManager.get_schema())


def upgrade() -> None:
    create_job_queue()
    op.create_table(
        "api_key",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("key_sha256", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("key_sha256", name=op.f("uq_api_key_key_sha256")),
    )
    op.create_table(
        "batch",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_table(
        "lora_model",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("algorithm", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("modules", sa.Integer(), nullable=False),
        sa.Column("text_encoder", sa.Boolean(), nullable=False),
        sa.Column("trigger_words", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("strays", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parameter_count", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("file_metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lora_model")),
        sa.UniqueConstraint("owner", "sha256", name=op.f("uq_lora_model_owner_sha256")),
    )
    op.create_table(
        "seen_base_model",
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("health", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", name=op.f("pk_seen_base_model")),
    )
    op.create_table(
        "avatar",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("base_prompt", sa.Text(), nullable=False),
        sa.Column("negative_prompt", sa.Text(), nullable=False),
        sa.Column("lora_model_id", sa.UUID(), nullable=True),
        sa.Column("lora_scale", sa.Double(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["lora_model_id"],
            ["lora_model.id"],
            name=op.f("fk_avatar_lora_model_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_avatar")),
    )
    op.create_index(op.f("ix_avatar_lora_model_id"), "avatar", ["lora_model_id"], unique=False)
    op.create_index(
        op.f("ix_avatar_owner_created_at"), "avatar", ["owner", "created_at"], unique=False
    )
    op.create_table(
        "generation",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("avatar_id", sa.UUID(), nullable=True),
        sa.Column("batch_id", sa.UUID(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("negative_prompt", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("loras", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lora_reports", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("timings", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("model_clean", sa.Boolean(), nullable=True),
        sa.Column("provider", sa.String(), nullable=True),
        sa.Column("provider_attempts", sa.Integer(), nullable=True),
        sa.Column("estimated_usd", sa.Double(), nullable=True),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("cost_gpu", sa.String(), nullable=True),
        sa.Column("cost_seconds", sa.Double(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_generation_status"),
        ),
        sa.ForeignKeyConstraint(
            ["avatar_id"], ["avatar.id"], name=op.f("fk_generation_avatar_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batch.id"], name=op.f("fk_generation_batch_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation")),
    )
    op.create_index(op.f("ix_generation_avatar_id"), "generation", ["avatar_id"], unique=False)
    op.create_index(op.f("ix_generation_batch_id"), "generation", ["batch_id"], unique=False)
    op.create_index(
        "ix_generation_open",
        "generation",
        ["status"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        "ix_generation_owner_created_at_id",
        "generation",
        ["owner", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "uq_generation_owner_idempotency_key",
        "generation",
        ["owner", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "content_piece",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("generation_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generation.id"],
            name=op.f("fk_content_piece_generation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_content_piece")),
        sa.UniqueConstraint(
            "generation_id", "position", name=op.f("uq_content_piece_generation_id_position")
        ),
    )
    op.create_table(
        "generation_event",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("generation_id", sa.UUID(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generation.id"],
            name=op.f("fk_generation_event_generation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation_event")),
    )
    op.create_index(
        op.f("ix_generation_event_generation_id_id"),
        "generation_event",
        ["generation_id", "id"],
        unique=False,
    )


def downgrade() -> None:
    # The job queue's tables stay: they may not be ours alone.
    op.drop_index(op.f("ix_generation_event_generation_id_id"), table_name="generation_event")
    op.drop_table("generation_event")
    op.drop_table("content_piece")
    op.drop_index(
        "uq_generation_owner_idempotency_key",
        table_name="generation",
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.drop_index("ix_generation_owner_created_at_id", table_name="generation")
    op.drop_index(
        "ix_generation_open",
        table_name="generation",
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.drop_index(op.f("ix_generation_batch_id"), table_name="generation")
    op.drop_index(op.f("ix_generation_avatar_id"), table_name="generation")
    op.drop_table("generation")
    op.drop_index(op.f("ix_avatar_owner_created_at"), table_name="avatar")
    op.drop_index(op.f("ix_avatar_lora_model_id"), table_name="avatar")
    op.drop_table("avatar")
    op.drop_table("seen_base_model")
    op.drop_table("lora_model")
    op.drop_table("batch")
    op.drop_table("api_key")
