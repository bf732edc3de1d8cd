"""Which place a content has in its batch: a grid's cell is known by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

# Of a grid that lost none of its cells, their order says it.
_OF_GRIDS = """
    UPDATE generation g SET batch_place = n.place
    FROM (
        SELECT id, batch_id, count(*) OVER (PARTITION BY batch_id) AS cells,
            row_number() OVER (PARTITION BY batch_id ORDER BY created_at, id) - 1 AS place
        FROM generation WHERE batch_id IN (SELECT id FROM batch WHERE request ? 'grid')
    ) n JOIN batch b ON b.id = n.batch_id
    WHERE g.id = n.id AND n.cells = b.total
"""


def upgrade() -> None:
    op.add_column("generation", sa.Column("batch_place", sa.Integer()))
    op.execute(_OF_GRIDS)


def downgrade() -> None:
    op.drop_column("generation", "batch_place")
