"""Who may read what environments left: what is there already becomes its owner's alone, who can share it again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_VISIBILITY = sa.Enum("private", "workspace", "public", name="visibility", native_enum=False, length=16)


def upgrade() -> None:
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("visibility", _VISIBILITY, nullable=False, server_default="private"))
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.alter_column("visibility", server_default=None)
