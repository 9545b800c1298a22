"""Life cycles of environments, and their signs of life."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LIFECYCLE = sa.Enum(
    "persistent", "ephemeral", "scheduled", "on-demand", name="lifecycle", native_enum=False, length=16
)


def upgrade() -> None:
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lifecycle", _LIFECYCLE, nullable=False, server_default="persistent"))
        batch_op.add_column(sa.Column("lifecycle_from", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("idle_seconds", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("start_at", sa.String(length=100), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("stop_at", sa.String(length=100), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("timezone", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("last_active", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("last_typed", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("warned", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("wish_reason", sa.String(), nullable=False, server_default=""))
