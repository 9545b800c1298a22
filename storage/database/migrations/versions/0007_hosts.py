"""Hosts, and where each environment is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("compute", sa.String(length=48), nullable=False),
        sa.Column("is_up", sa.Boolean(), nullable=False),
        sa.Column("is_drained", sa.Boolean(), nullable=False),
        sa.Column("is_here", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("drain_reason", sa.String(), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("host", sa.String(length=48), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("reserves", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_index("ix_environments_host", ["host"], unique=False)
    # Until now there was one engine, and what runs there, or is about to, holds its share of it.
    op.execute("UPDATE environments SET host = 'here' WHERE compute = 'docker'")
    op.execute(
        sa.text(
            "UPDATE environments SET reserves = :yes WHERE compute = 'docker' AND"
            " (state IN ('creating', 'running', 'stopping', 'deleting') OR (wish = 'running' AND state != 'failed'))"
        ).bindparams(yes=True)
    )
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.alter_column("host", server_default=None)
        batch_op.alter_column("reserves", server_default=None)
