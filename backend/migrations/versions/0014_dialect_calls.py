"""Calls of other services' APIs with the URLs that are told of them; LoRAs by their URLs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_ID = UUID(as_uuid=True)
# Kinds of events: Replicate's own words; fal tells of ends only.
_FUNCTION = """
    CREATE FUNCTION tell_dialect_webhook() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO webhook_delivery
            (id, webhook_id, content_id, type, url, state, attempts, next_at, created_at)
        SELECT gen_random_uuid(), c.webhook_id, NEW.id, c.dialect || '.' || k.kind,
            c.webhook_url, 'waiting', 0, now(), now()
        FROM dialect_call c CROSS JOIN LATERAL jsonb_array_elements_text(c.webhook_events) k(kind)
        WHERE c.content_id = NEW.id AND c.webhook_id IS NOT NULL AND CASE k.kind
            WHEN 'start' THEN NEW.status = 'running' AND NEW.attempt = 1
            WHEN 'output' THEN NEW.status = 'succeeded'
            ELSE NEW.status IN ('succeeded', 'failed', 'cancelled')
        END;
        RETURN NULL;
    END $$
"""
_TRIGGER = """
    CREATE TRIGGER tell_dialect_webhook AFTER UPDATE OF status ON generation FOR EACH ROW
    WHEN (
        NEW.status IN ('running', 'succeeded', 'failed', 'cancelled')
        AND OLD.status IN ('queued', 'running') AND OLD.status <> NEW.status
    )
    EXECUTE FUNCTION tell_dialect_webhook()
"""


def upgrade() -> None:
    op.add_column("webhook", sa.Column("kind", sa.String(), server_default="own", nullable=False))
    op.create_index(
        "uq_webhook_dialect",
        "webhook",
        ["owner", "kind"],
        unique=True,
        postgresql_where=sa.text("kind <> 'own'"),
    )
    op.add_column("webhook_delivery", sa.Column("url", sa.Text(), nullable=True))
    op.create_table(
        "dialect_call",
        sa.Column("content_id", _ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("dialect", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String()),
        sa.Column("input", JSONB(), nullable=False),
        sa.Column("webhook_id", _ID),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("webhook_events", JSONB(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["generation.id"],
            name=op.f("fk_dialect_call_content_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhook.id"],
            name=op.f("fk_dialect_call_webhook_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("content_id", name=op.f("pk_dialect_call")),
    )
    op.create_index(
        "ix_dialect_call_owner_dialect_created_at_content_id",
        "dialect_call",
        ["owner", "dialect", "created_at", "content_id"],
    )
    op.create_index("ix_dialect_call_webhook_id", "dialect_call", ["webhook_id"])
    op.create_table(
        "lora_source",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("url_sha256", sa.String(), nullable=False),
        sa.Column("lora_id", _ID, nullable=False),
        sa.Column("etag", sa.String()),
        sa.Column("looked_at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["lora_id"],
            ["lora_model.id"],
            name=op.f("fk_lora_source_lora_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("owner", "url_sha256", name=op.f("pk_lora_source")),
    )
    op.create_index("ix_lora_source_lora_id", "lora_source", ["lora_id"])
    op.execute(_FUNCTION)
    op.execute(_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER tell_dialect_webhook ON generation")
    op.execute("DROP FUNCTION tell_dialect_webhook()")
    op.drop_table("lora_source")
    op.drop_table("dialect_call")
    op.drop_column("webhook_delivery", "url")
    op.drop_index("uq_webhook_dialect", table_name="webhook")
    op.drop_column("webhook", "kind")
