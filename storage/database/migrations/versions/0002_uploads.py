"""Uploads that can be gone on with: leases, lists of parts, hashes; directories that are being moved."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("uploads") as table:
        table.add_column(sa.Column("sent_as", sa.String(length=1100), nullable=False, server_default=""))
        table.add_column(sa.Column("copied", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("expected_size", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("parts", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("sha256", sa.String(length=64), nullable=False, server_default=""))
        table.add_column(sa.Column("md5", sa.String(length=32), nullable=False, server_default=""))
        table.add_column(sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("superseded", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("lease_until", sa.DateTime(), nullable=True))
        table.add_column(sa.Column("resumed", sa.DateTime(), nullable=True))
        table.create_index("ix_uploads_sent_as", ["sent_as"])
    op.execute("UPDATE uploads SET sent_as = key")
    with op.batch_alter_table("file_facts") as table:
        table.add_column(sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "moves",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("old", sa.String(length=1100), nullable=False),
        sa.Column("new", sa.String(length=1100), nullable=False),
        sa.Column("by_id", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=1100), nullable=False),
        sa.Column("to", sa.String(length=1100), nullable=False),
        sa.Column("copied", sa.Boolean(), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("instance", sa.String(length=16), nullable=False),
        sa.Column("touched", sa.DateTime(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moves")),
    )
    for column in ("old", "new"):
        op.create_index(f"ix_moves_{column}", "moves", [column])
