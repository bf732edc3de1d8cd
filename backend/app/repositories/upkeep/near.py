"""Conditions: a table's pictures that are near what is known, and what is known near a picture.

PostgreSQL counts in a bit string in how many bits two likenesses differ.
Must not know: what a likeness is of.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, ColumnElement, Float, and_, cast, false, func, literal, or_
from sqlalchemy.dialects.postgresql import BIT

from app.models import Image, InputImage
from app.models.takedown import SHAPE_SLACK, Known


def near_row(likeness: str, shape: str) -> str:
    """SQL: whether a picture is near a row of `taken_down_picture`."""
    row = "taken_down_picture"
    return (
        f"bit_count(({row}.likeness # {likeness})::bit(64)) <= {row}.bits "
        f"AND ({row}.shape IS NULL OR abs({shape} / {row}.shape - 1) <= {SHAPE_SLACK})"
    )


def near_any(table: type[Image] | type[InputImage], known: Sequence[Known]) -> ColumnElement[bool]:
    """Whether a row of `table` is near one of `known`: one pass over the table for all of them.

    One long condition, by shapes, takes a seventh of the time of a join with a list.
    """
    by_shape: dict[float | None, list[ColumnElement[bool]]] = {}
    for one in known:
        differing = table.likeness.op("#")(literal(one.likeness, BigInteger))
        is_near = func.bit_count(cast(differing, BIT(64))) <= one.bits
        by_shape.setdefault(one.shape, []).append(is_near)
    sides = table.width, table.height
    seen = cast(func.greatest(*sides), Float) / func.least(*sides)
    near = [
        or_(*bits)
        if shape is None
        else and_(seen.between(shape * (1 - SHAPE_SLACK), shape * (1 + SHAPE_SLACK)), or_(*bits))
        for shape, bits in by_shape.items()
    ]
    return or_(false(), *near)


# Whether an order names pictures, or what they were drawn from. The last part looks at all that is
# known of what was taken down: less than a microsecond each.
TAKEN_DOWN = f"""
    SELECT EXISTS (SELECT 1 FROM taken_down_picture WHERE sha256 = ANY(%(hashes)s))
    OR EXISTS (SELECT 1 FROM takedown WHERE kind = 'lora' AND value = ANY(%(weights)s)) OR EXISTS (
        SELECT 1 FROM taken_down_picture,
            unnest(%(likenesses)s::bigint[], %(shapes)s::float8[]) AS drawn(likeness, shape)
        WHERE {near_row("drawn.likeness", "drawn.shape")}
    )
"""
