"""Images, archives of images, and which image an environment was made from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _words(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, length=16)


_KIND = _words("imagekind", "official", "custom", "imported")
_STATE = _words("imagestate", "building", "ready", "failed", "deleting")
_VISIBILITY = _words("visibility", "private", "workspace", "public")
_ARCHIVE = _words("archivestate", "received", "verifying", "loading", "pushing", "ready", "failed")


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=16), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("tag", sa.String(length=48), nullable=False),
        sa.Column("kind", _KIND, nullable=False),
        sa.Column("state", _STATE, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("visibility", _VISIBILITY, nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("former", sa.JSON(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("architecture", sa.String(length=32), nullable=False),
        sa.Column("cuda", sa.String(length=32), nullable=False),
        sa.Column("driver", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("touched", sa.DateTime(), nullable=False),
        sa.Column("ready", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_images_owner_id_users")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_images_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
    )
    op.create_index("ix_images_state", "images", ["state"], unique=False)
    columns = ["workspace_id", "owner_id", "name", "tag"]
    op.create_index("uq_images_workspace_owner_name_tag", "images", columns, unique=True)
    op.create_table(
        "image_archives",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("image_id", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=16), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=1100), nullable=False),
        sa.Column("key", sa.String(length=1100), nullable=False),
        sa.Column("etag", sa.String(length=80), nullable=False),
        sa.Column("state", _ARCHIVE, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("touched", sa.DateTime(), nullable=False),
        sa.Column("finished", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_image_archives_owner_id_users")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name=op.f("fk_image_archives_workspace_id_workspaces")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_archives")),
    )
    for columns in (["image_id"], ["key"], ["state"], ["owner_id", "created"]):
        op.create_index(f"ix_image_archives_{'_'.join(columns)}", "image_archives", columns, unique=False)
    with op.batch_alter_table("environments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("image_id", sa.String(length=16), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("image_digest", sa.String(length=80), nullable=False, server_default=""))
        batch_op.create_index("ix_environments_image_id", ["image_id"], unique=False)
    with op.batch_alter_table("environments", schema=None) as batch_op:
        for column in ("image_id", "image_digest"):
            batch_op.alter_column(column, server_default=None)
