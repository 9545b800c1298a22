"""Quotas: exceptions from the settings, and which thresholds were told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_HOLDER = sa.Enum("user", "workspace", name="holder", native_enum=False, length=16)


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("holder", _HOLDER, nullable=False),
        sa.Column("holder_id", sa.String(length=16), nullable=False),
        sa.Column("environments", sa.Integer(), nullable=True),
        sa.Column("cpus", sa.Double(), nullable=True),
        sa.Column("memory", sa.BigInteger(), nullable=True),
        sa.Column("storage", sa.BigInteger(), nullable=True),
        sa.Column("uploads", sa.Integer(), nullable=True),
        sa.Column("parked", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.String(length=64), nullable=False),
        sa.Column("changed", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "holder_id", name=op.f("pk_quotas")),
    )
    op.create_table(
        "quota_warnings",
        sa.Column("holder", _HOLDER, nullable=False),
        sa.Column("holder_id", sa.String(length=16), nullable=False),
        sa.Column("resource", sa.String(length=16), nullable=False),
        sa.Column("told", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "holder_id", "resource", name=op.f("pk_quota_warnings")),
    )
