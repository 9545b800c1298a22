"""An environment's memory in 64 bits on PostgreSQL, where the first schema's 32 hold no more than 2 GiB."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":  # whose integers have 64 bits
        op.alter_column("environments", "memory", existing_type=sa.Integer(), type_=sa.BigInteger())
