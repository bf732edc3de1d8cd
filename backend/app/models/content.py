"""What was asked for and what became of it: the API's *content* without its pictures.

Life: `queued` when accepted, `running` while an attempt holds it, then one of the final states. An
attempt that finds the worker away puts it back: `queued` again.
Every change by a runner is fenced by `attempt`: who does not hold the newest attempt changes
nothing.
"""

from __future__ import annotations

import uuid
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, Computed, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import Base, Created, Json, JsonList, LongText, Moment, UuidPk
from app.models.image import Image


class Status(StrEnum):
    """Where a content is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Content(Base):
    """One accepted request."""

    __tablename__ = "generation"
    __table_args__ = (
        CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status"
        ),
        Index("ix_generation_owner_created_at_id", "owner", "created_at", "id"),
        # Asked at each acceptance, for the estimate; on a CPU no content has a price.
        Index(
            "ix_generation_priced",
            "owner",
            "created_at",
            postgresql_where=text("cost_usd IS NOT NULL"),
        ),
        Index("ix_generation_open", "status", postgresql_where=text("finished_at IS NULL")),
        # The line of each owner, and the content that a ticket of the queue stands for.
        Index(
            "ix_generation_line",
            "owner",
            "created_at",
            "id",
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_generation_job_id", "job_id", postgresql_where=text("finished_at IS NULL")),
        Index(
            "uq_generation_owner_idempotency_key",
            "owner",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_generation_bin", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("ix_generation_prompt_search", "prompt_search", postgresql_using="gin"),
        Index(
            "ix_generation_loras",
            "loras",
            postgresql_using="gin",
            postgresql_ops={"loras": "jsonb_path_ops"},
        ),
    )

    id: Mapped[UuidPk]
    owner: Mapped[str]
    status: Mapped[str]
    attempt: Mapped[int]  # the fence; grows each time a runner takes the job up
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    avatar_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("avatar.id", ondelete="SET NULL"), index=True
    )
    batch_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("batch.id", ondelete="SET NULL"), index=True
    )
    batch_place: Mapped[int | None]  # in the batch, from 0; of a grid, row by row
    prompt: Mapped[LongText]
    negative_prompt: Mapped[LongText]
    # prompt, negative_prompt, styles, before these and wildcards became words; None: nothing did.
    written: Mapped[Json | None]
    # What is known of width, height, steps, cfg, seed, num_images, scheduler, output_format: what
    # was asked for, and once drawn what the worker says was used.
    parameters: Mapped[Json]
    # What was asked for, without what was left open; None in rows of older versions, whose
    # parameters were all chosen at acceptance.
    asked: Mapped[Json | None]
    loras: Mapped[JsonList]  # as asked for: lora_model_id, name, sha256, scale
    # What goes into its pictures' pixels: see marking.watermark.methods.Mark
    watermark: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    request_sha256: Mapped[str]
    cancel_requested_at: Mapped[Moment | None]
    deadline_at: Mapped[Moment | None]  # it fails where it has not ended by then
    retry_at: Mapped[Moment | None]  # not claimed before
    waiting_for: Mapped[Json | None]  # reason, message: what keeps it from going on
    # Attempts that the worker or its surroundings gave back before anything was drawn.
    releases: Mapped[int] = mapped_column(default=0, server_default="0")

    lora_reports: Mapped[JsonList | None]  # as the worker applied them
    timings: Mapped[Json | None]  # seconds by phase
    error: Mapped[Json | None]  # code, message, details
    model_clean: Mapped[bool | None]
    safety: Mapped[Json | None]  # what the worker's safety checker found, as it says it
    provider: Mapped[str | None]
    provider_attempts: Mapped[int | None]
    estimated_usd: Mapped[float | None]
    cost_usd: Mapped[float | None]
    cost_gpu: Mapped[str | None]
    cost_seconds: Mapped[float | None]
    cost_parts: Mapped[Json | None]  # seconds of cold_start, lora, generation; their sum is above

    created_at: Mapped[Created]
    started_at: Mapped[Moment | None]
    finished_at: Mapped[Moment | None] = mapped_column(index=True)
    deleted_at: Mapped[Moment | None]  # in the bin since then

    # Made by the database from the prompt, and read only there.
    prompt_search: Mapped[str | None] = mapped_column(
        TSVECTOR, Computed("to_tsvector('simple'::regconfig, prompt)"), deferred=True
    )

    images: Mapped[list[Image]] = relationship(
        order_by=Image.position, lazy="raise", passive_deletes=True
    )


class GenerationRecord(Base):
    """What is kept of a content that was drawn, also when the content is gone."""

    __tablename__ = "generation_record"
    __table_args__ = (Index("ix_generation_record_created_at", "created_at"),)

    content_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    prompt: Mapped[LongText | None]  # only where the operator keeps prompts
    parameters: Mapped[Json]
    base_model: Mapped[str]
    loras: Mapped[JsonList]  # sha256, scale
    images: Mapped[JsonList]  # sha256, file_sha256, likeness, seed
    created_at: Mapped[Created]


class GenerationEvent(Base):
    """What happened to a content, in order; kept for live events that resume."""

    __tablename__ = "generation_event"
    __table_args__ = (Index(None, "generation_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    generation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("generation.id", ondelete="CASCADE")
    )
    type: Mapped[str]
    data: Mapped[Json]
    created_at: Mapped[Created]


class DialectCall(Base):
    """The call of another service's API that a content came by, where its answers echo it.

    A trigger tells `webhook_url` what happens to the content, as `webhook_id` signs it.
    """

    __tablename__ = "dialect_call"
    __table_args__ = (Index(None, "owner", "dialect", "created_at", "content_id"),)

    content_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("generation.id", ondelete="CASCADE"), primary_key=True
    )
    owner: Mapped[str]
    dialect: Mapped[str]
    model: Mapped[str]
    version: Mapped[str | None]
    input: Mapped[Json]
    webhook_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("webhook.id", ondelete="SET NULL"), index=True
    )
    webhook_url: Mapped[LongText | None]
    webhook_events: Mapped[JsonList]
    created_at: Mapped[Created]
