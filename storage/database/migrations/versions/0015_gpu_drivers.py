"""The GPU driver of each host, and why its GPUs cannot be asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gpu_driver", sa.String(length=40), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("cuda", sa.String(length=16), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("gpu_trouble", sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        for name in ("gpu_driver", "cuda", "gpu_trouble"):
            batch_op.alter_column(name, server_default=None)
