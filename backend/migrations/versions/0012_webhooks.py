"""Webhooks, their outbox, and the trigger that fills it in the transaction that ends a content."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_FUNCTION = """
    CREATE FUNCTION tell_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO webhook_delivery
            (id, webhook_id, content_id, type, state, attempts, next_at, created_at)
        SELECT gen_random_uuid(), w.id, NEW.id, 'content.' || NEW.status, 'waiting', 0,
            now(), now()
        FROM webhook w
        WHERE w.owner = NEW.owner AND w.is_enabled
            AND jsonb_exists(w.events, 'content.' || NEW.status);
        RETURN NULL;
    END $$
"""
_TRIGGER = """
    CREATE TRIGGER tell_webhooks AFTER UPDATE OF status ON generation FOR EACH ROW
    WHEN (
        NEW.status IN ('succeeded', 'failed', 'cancelled')
        AND OLD.status NOT IN ('succeeded', 'failed', 'cancelled')
    )
    EXECUTE FUNCTION tell_webhooks()
"""


def upgrade() -> None:
    op.create_table(
        "webhook",
        sa.Column("id", UUID(as_uuid=True), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("events", JSONB(), nullable=False),
        sa.Column("signing", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("previous_secret", sa.String()),
        sa.Column("previous_until", _MOMENT),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.String()),
        sa.Column("failing_since", _MOMENT),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
    )
    op.create_index("ix_webhook_owner_created_at", "webhook", ["owner", "created_at"])
    op.create_table(
        "webhook_delivery",
        sa.Column("id", UUID(as_uuid=True), nullable=False),
        sa.Column("webhook_id", UUID(as_uuid=True), nullable=False),
        sa.Column("content_id", UUID(as_uuid=True)),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", _MOMENT),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint(
            "state IN ('waiting', 'delivered', 'failed')",
            name=op.f("ck_webhook_delivery_state"),
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhook.id"],
            name=op.f("fk_webhook_delivery_webhook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_delivery")),
    )
    op.create_index(
        "ix_webhook_delivery_due",
        "webhook_delivery",
        ["webhook_id", "next_at"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_webhook_delivery_webhook_id_created_at_id",
        "webhook_delivery",
        ["webhook_id", "created_at", "id"],
    )
    op.create_index("ix_webhook_delivery_created_at", "webhook_delivery", ["created_at"])
    op.create_table(
        "webhook_attempt",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("delivery_id", UUID(as_uuid=True), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("error", sa.String()),
        sa.Column("head", sa.String()),
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_delivery.id"],
            name=op.f("fk_webhook_attempt_delivery_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempt")),
    )
    op.create_index("ix_webhook_attempt_delivery_id_id", "webhook_attempt", ["delivery_id", "id"])
    op.execute(_FUNCTION)
    op.execute(_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER tell_webhooks ON generation")
    op.execute("DROP FUNCTION tell_webhooks()")
    op.drop_table("webhook_attempt")
    op.drop_table("webhook_delivery")
    op.drop_table("webhook")
