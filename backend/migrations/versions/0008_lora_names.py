"""A LoRA's name is its owner's only one; of several with one name all but the oldest get a number.

No constraint holds it: an older version that still runs on this schema would fail on it. Uploads
take turns instead, and a name that two have all the same is refused with both ids.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# One round numbers those with the same name; a numbered one may meet another that was called so.
_NUMBER = """
    WITH same AS (
        SELECT id, row_number() OVER (
            PARTITION BY owner, name ORDER BY created_at, id
        ) AS number FROM lora_model
    )
    UPDATE lora_model l SET name = left(l.name, 190) || ' (' || same.number || ')'
    FROM same WHERE same.id = l.id AND same.number > 1
"""
_ROUNDS = 20


def upgrade() -> None:
    op.execute(
        f"""
        DO $$ BEGIN
            FOR round IN 1..{_ROUNDS} LOOP
                {_NUMBER};
                EXIT WHEN NOT FOUND;
            END LOOP;
        END $$
        """
    )
    op.create_index("ix_lora_model_owner_name", "lora_model", ["owner", "name"])


def downgrade() -> None:
    op.drop_index("ix_lora_model_owner_name", "lora_model")
