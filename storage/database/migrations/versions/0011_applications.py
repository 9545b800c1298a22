"""Applications of environments, and their published ports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATE = sa.Enum(
    "waiting", "starting", "running", "missing", "failed", name="applicationstate", native_enum=False, length=16
)


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("environment_id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("state", _STATE, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("seen", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_applications_environment_id_environments")
        ),
        sa.PrimaryKeyConstraint("environment_id", "name", name=op.f("pk_applications")),
    )
    op.create_table(
        "published_ports",
        sa.Column("environment_id", sa.String(length=16), nullable=False),
        sa.Column("port", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("external_port", sa.Integer(), nullable=False),
        sa.Column("published", sa.DateTime(), nullable=False),
        sa.Column("by", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_published_ports_environment_id_environments")
        ),
        sa.PrimaryKeyConstraint("environment_id", "port", name=op.f("pk_published_ports")),
        sa.UniqueConstraint("external_port", name=op.f("uq_published_ports_external_port")),
    )
