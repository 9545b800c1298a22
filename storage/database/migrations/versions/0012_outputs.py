"""Outputs of environments that are gone, and for how long they are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATE = sa.Enum("copying", "ready", "deleting", name="artifactstate", native_enum=False, length=16)


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=16), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("environment_id", sa.String(length=16), nullable=False),
        sa.Column("environment_name", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("prefix", sa.String(length=200), nullable=False),
        sa.Column("state", _STATE, nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("remarks", sa.JSON(), nullable=False),
        sa.Column("unlisted", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("expires", sa.DateTime(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_artifacts_owner_id_users")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_artifacts_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_index("ix_artifacts_environment_id", "artifacts", ["environment_id"], unique=False)
    op.create_index("ix_artifacts_expires", "artifacts", ["expires"], unique=False)
    op.create_index("ix_artifacts_owner_id", "artifacts", ["owner_id"], unique=False)
    op.create_index("uq_artifacts_workspace_name", "artifacts", ["workspace_id", "name"], unique=True)
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("keep_output_days", sa.Integer(), nullable=True))
