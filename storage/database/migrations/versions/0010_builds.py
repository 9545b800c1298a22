"""Builds of images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_STATES = ("queued", "building", "pushing", "success", "failed", "cancelled")


def upgrade() -> None:
    op.create_table(
        "builds",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("image_id", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=16), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("tag", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("dockerfile", sa.String(), nullable=False),
        sa.Column("state", sa.Enum(*_STATES, name="buildstate", native_enum=False, length=16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("failed_step", sa.Integer(), nullable=False),
        sa.Column("failed_line", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("started", sa.DateTime(), nullable=True),
        sa.Column("finished", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_builds_owner_id_users")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_builds_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
    )
    op.create_index("ix_builds_image_id", "builds", ["image_id"], unique=False)
    op.create_index("ix_builds_state", "builds", ["state"], unique=False)
    columns = ["workspace_id", "owner_id", "name", "number"]
    op.create_index("uq_builds_workspace_owner_name_number", "builds", columns, unique=True)
