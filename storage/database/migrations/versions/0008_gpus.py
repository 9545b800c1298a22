"""GPUs of hosts, which of them environments have, and quotas of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_MODE = sa.Enum("none", "exclusive", "shared", "mig", name="gpumode", native_enum=False, length=16)


def upgrade() -> None:
    op.create_table(
        "gpus",
        sa.Column("uuid", sa.String(length=96), nullable=False),
        sa.Column("host", sa.String(length=48), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("memory", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.String(length=96), nullable=False),
        sa.Column("profile", sa.String(length=32), nullable=False),
        sa.Column("is_present", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_gpus")),
    )
    op.create_index("ix_gpus_host", "gpus", ["host"], unique=False)
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gpus", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("gpu_mode", _MODE, nullable=False, server_default="none"))
        batch_op.add_column(sa.Column("gpu_model", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("cards", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("environments", schema=None) as batch_op:
        for column in ("gpus", "gpu_mode", "gpu_model", "cards"):
            batch_op.alter_column(column, server_default=None)
    with op.batch_alter_table("quotas", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gpus", sa.Integer(), nullable=True))
