"""Files that their senders name before they have come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_ID = UUID(as_uuid=True)
_LEADS_TO = {
    "key_id": "api_key",
    "input_image_id": "input_image",
    "lora_id": "lora_model",
}


def upgrade() -> None:
    op.create_table(
        "sent_file",
        sa.Column("id", _ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key_id", _ID),
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("input_image_id", _ID),
        sa.Column("lora_id", _ID),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        *(
            sa.ForeignKeyConstraint(
                [column], [f"{table}.id"], name=op.f(f"fk_sent_file_{column}"), ondelete="CASCADE"
            )
            for column, table in _LEADS_TO.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sent_file")),
    )
    op.create_index("ix_sent_file_owner_created_at", "sent_file", ["owner", "created_at"])
    for column in ("input_image_id", "lora_id"):
        op.create_index(f"ix_sent_file_{column}", "sent_file", [column])


def downgrade() -> None:
    op.drop_table("sent_file")
