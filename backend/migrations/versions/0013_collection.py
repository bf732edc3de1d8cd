"""Stars, boards, a bin, shared pictures, search in prompts; more about LoRAs and avatars."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_ID = postgresql.UUID(as_uuid=True)


def upgrade() -> None:
    op.add_column("content_piece", sa.Column("starred_at", _MOMENT, nullable=True))
    op.add_column("content_piece", sa.Column("deleted_at", _MOMENT, nullable=True))
    op.create_index(
        "ix_content_piece_starred",
        "content_piece",
        ["generation_id"],
        postgresql_where=sa.text("starred_at IS NOT NULL"),
    )
    op.create_index(
        "ix_content_piece_bin",
        "content_piece",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.add_column("generation", sa.Column("deleted_at", _MOMENT, nullable=True))
    op.create_index(
        "ix_generation_bin",
        "generation",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.add_column(
        "generation",
        sa.Column(
            "prompt_search",
            postgresql.TSVECTOR(),
            sa.Computed("to_tsvector('simple'::regconfig, prompt)", persisted=True),
            nullable=True,
        ),
    )
    op.create_index(
        "ix_generation_prompt_search", "generation", ["prompt_search"], postgresql_using="gin"
    )
    op.create_index(
        "ix_generation_loras",
        "generation",
        ["loras"],
        postgresql_using="gin",
        postgresql_ops={"loras": "jsonb_path_ops"},
    )
    op.add_column(
        "lora_model", sa.Column("default_scale", sa.Float(), server_default="1", nullable=False)
    )
    for table in ("lora_model", "avatar"):
        op.add_column(table, sa.Column("cover_image_id", _ID, nullable=True))
        op.create_foreign_key(
            op.f(f"fk_{table}_cover_image_id"),
            table,
            "content_piece",
            ["cover_image_id"],
            ["id"],
            ondelete="SET NULL",
        )
        op.create_index(op.f(f"ix_{table}_cover_image_id"), table, ["cover_image_id"])
    op.create_table(
        "board",
        sa.Column("id", _ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_board")),
        sa.UniqueConstraint("owner", "name", name=op.f("uq_board_owner_name")),
    )
    op.create_table(
        "board_image",
        sa.Column("board_id", _ID, nullable=False),
        sa.Column("image_id", _ID, nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["board_id"], ["board.id"], name=op.f("fk_board_image_board_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["content_piece.id"],
            name=op.f("fk_board_image_image_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("board_id", "image_id", name=op.f("pk_board_image")),
    )
    op.create_index(op.f("ix_board_image_image_id"), "board_image", ["image_id"])
    op.create_table(
        "share",
        sa.Column("id", _ID, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("image_id", _ID, nullable=False),
        sa.Column("with_prompt", sa.Boolean(), nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["content_piece.id"], name=op.f("fk_share_image_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_share_token_sha256")),
    )
    op.create_index(op.f("ix_share_image_id"), "share", ["image_id"])
    op.create_index(op.f("ix_share_expires_at"), "share", ["expires_at"])


def downgrade() -> None:
    op.drop_table("share")
    op.drop_table("board_image")
    op.drop_table("board")
    for table in ("avatar", "lora_model"):
        op.drop_column(table, "cover_image_id")
    op.drop_column("lora_model", "default_scale")
    op.drop_column("generation", "prompt_search")
    op.drop_index("ix_generation_loras", "generation")
    op.drop_column("generation", "deleted_at")
    op.drop_column("content_piece", "deleted_at")
    op.drop_column("content_piece", "starred_at")
