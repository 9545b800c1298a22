"""Data sets become assets beside models: visibility, shares, tags, counted totals, links, uses, recorded deletions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KIND = sa.Enum("dataset", "model", name="assetkind", native_enum=False, length=16)
_STATE = sa.Enum("uploading", "ready", "error", "deleting", name="versionstate", native_enum=False, length=16)
_VISIBILITY = sa.Enum("private", "workspace", "public", name="visibility", native_enum=False, length=16)


def upgrade() -> None:
    _assets()
    _versions()
    _copy()
    _shares()
    _uses()
    _deletions()
    op.create_index("ix_file_facts_sha256", "file_facts", ["sha256"])


def _assets() -> None:
    op.create_table(
        "assets",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("kind", _KIND, nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=16), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("visibility", _VISIBILITY, nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("default_version", sa.String(length=48), nullable=False),
        sa.Column("framework", sa.String(length=48), nullable=False),
        sa.Column("task", sa.String(length=48), nullable=False),
        sa.Column("deleting", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_assets_owner_id_users")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_assets_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
    )
    op.create_index("uq_assets_workspace_kind_name", "assets", ["workspace_id", "kind", "name"], unique=True)


def _versions() -> None:
    op.create_table(
        "asset_versions",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("asset_id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("state", _STATE, nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("published", sa.DateTime(), nullable=True),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.DateTime(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("target_id", sa.String(length=16), nullable=True),
        sa.Column("is_link", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.id"], name=op.f("fk_asset_versions_asset_id_assets"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["target_id"],
            ["asset_versions.id"],
            name=op.f("fk_asset_versions_target_id_asset_versions"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_asset_versions")),
    )
    op.create_index("uq_asset_versions_asset_name", "asset_versions", ["asset_id", "name"], unique=True)
    op.create_index("ix_asset_versions_target_id", "asset_versions", ["target_id"])


def _copy() -> None:
    # New tables instead of altered ones: SQLite would rebuild a parent table by dropping it, which cascades.
    op.execute(
        "INSERT INTO assets (id, kind, workspace_id, owner_id, owner_name, name, description, visibility, tags,"
        " default_version, framework, task, deleting, created)"
        " SELECT id, 'dataset', workspace_id, owner_id, owner_name, name, '', 'workspace', '[]',"
        " '', '', '', deleting, created FROM datasets"
    )
    op.execute(
        "INSERT INTO asset_versions (id, asset_id, name, state, created, published, files, bytes, metrics, is_link)"
        " SELECT id, dataset_id, name, state, created, published, 0, 0, '{}', false FROM dataset_versions"
    )
    op.drop_table("dataset_versions")
    op.drop_table("datasets")


def _shares() -> None:
    op.create_table(
        "asset_shares",
        sa.Column("asset_id", sa.String(length=16), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=32), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.id"], name=op.f("fk_asset_shares_asset_id_assets"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f("fk_asset_shares_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("asset_id", "workspace_id", name=op.f("pk_asset_shares")),
    )


def _uses() -> None:
    op.create_table(
        "asset_uses",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("asset_id", sa.String(length=16), nullable=False),
        sa.Column("version_id", sa.String(length=16), nullable=False),
        sa.Column("version_name", sa.String(length=48), nullable=False),
        sa.Column("environment_id", sa.String(length=16), nullable=False),
        sa.Column("environment_name", sa.String(length=48), nullable=False),
        sa.Column("user_id", sa.String(length=16), nullable=False),
        sa.Column("user_name", sa.String(length=32), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("mounted", sa.DateTime(), nullable=False),
        sa.Column("unmounted", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.id"], name=op.f("fk_asset_uses_asset_id_assets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_asset_uses")),
    )
    for column in ("asset_id", "version_id", "environment_id"):
        op.create_index(f"ix_asset_uses_{column}", "asset_uses", [column])


def _deletions() -> None:
    op.create_table(
        "deletions",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("asset_id", sa.String(length=16), nullable=False),
        sa.Column("version_id", sa.String(length=16), nullable=False),
        sa.Column("workspace_id", sa.String(length=16), nullable=False),
        sa.Column("kind", _KIND, nullable=False),
        sa.Column("title", sa.String(length=100), nullable=False),
        sa.Column("prefix", sa.String(length=200), nullable=False),
        sa.Column("by_id", sa.String(length=16), nullable=False),
        sa.Column("by_name", sa.String(length=32), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("holder", sa.String(length=16), nullable=False),
        sa.Column("touched", sa.DateTime(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("finished", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletions")),
    )
    for column in ("asset_id", "workspace_id", "finished"):
        op.create_index(f"ix_deletions_{column}", "deletions", [column])
    # Deletions that were under way before there was a record of them.
    columns = (
        "INSERT INTO deletions (id, asset_id, version_id, workspace_id, kind, title, prefix, by_id, by_name,"
        " removed, reason, holder, touched, created) "
    )
    op.execute(
        columns + "SELECT a.id, a.id, '', a.workspace_id, 'dataset', a.name,"
        " 'datasets/' || w.name || '/' || a.name || '/', a.owner_id, a.owner_name, 0, '', '', a.created, a.created"
        " FROM assets a JOIN workspaces w ON w.id = a.workspace_id WHERE a.deleting"
    )
    op.execute(
        columns + "SELECT v.id, a.id, v.id, a.workspace_id, 'dataset', a.name || ':' || v.name,"
        " 'datasets/' || w.name || '/' || a.name || '/' || v.name || '/', a.owner_id, a.owner_name,"
        " 0, '', '', v.created, v.created"
        " FROM asset_versions v JOIN assets a ON a.id = v.asset_id JOIN workspaces w ON w.id = a.workspace_id"
        " WHERE v.state = 'deleting' AND NOT a.deleting"
    )
