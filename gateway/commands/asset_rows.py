"""Data sets and models as rows: keys that programs rely on, and what people read."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, table, to_json
from storage.asset_views import AssetView, VersionView
from storage.records import AssetKind

_COLUMNS = {
    "reference": "NAME", "owner": "OWNER", "visibility": "VISIBILITY", "version_names": "VERSIONS", "files": "FILES",
    "size": "SIZE", "framework": "FRAMEWORK", "task": "TASK", "tags": "TAGS", "created": "CREATED",
}  # fmt: skip
_VERSION_COLUMNS = {
    "name": "VERSION", "state": "STATE", "files": "FILES", "size": "SIZE", "metrics": "METRICS", "link": "LINK",
    "created": "CREATED", "published": "PUBLISHED",
}  # fmt: skip
_OF_MODELS = ("framework", "task", "metrics", "link")


def table_of(context: Context, views: Sequence[AssetView], *, as_json: bool, empty: str) -> None:
    """A list of assets."""
    if as_json:
        context.out(to_json([row_of(view) for view in views]))
        return
    rows: list[Row] = [
        {
            **row_of(view),
            "reference": view.reference(context.caller),
            "size": amount(view.bytes),
            "version_names": [version.name for version in view.versions],
        }
        for view in views
    ]
    table(context, rows, _fitting(_COLUMNS, rows), as_json=False, empty=empty)


def show_one(context: Context, view: AssetView, *, as_json: bool) -> None:
    """One asset and its versions."""
    if as_json:
        context.out(to_json(row_of(view)))
        return
    row = {key: value for key, value in row_of(view).items() if key not in ("files", "bytes", "versions")}
    facts(context, row, as_json=False)
    rows = [version_row(view, one, for_people=True) for one in view.versions]
    table(context, rows, _fitting(_VERSION_COLUMNS, rows), as_json=False, empty="no versions yet")


def row_of(view: AssetView) -> Row:
    """What programs get to see of an asset."""
    default = view.default_version
    about_models: Row = {"framework": view.framework, "task": view.task} if view.kind is AssetKind.MODEL else {}
    return {
        "name": view.name,
        "workspace": view.workspace,
        "owner": view.owner,
        "description": view.description,
        "visibility": view.visibility.value,
        "shared_with": list(view.shares.values()),
        "tags": list(view.tags),
        **about_models,
        "created": view.created,
        "files": view.files,
        "bytes": view.bytes,
        "default_version": default.name if default is not None else None,
        "versions": [version_row(view, version) for version in view.versions],
    }


def version_row(view: AssetView, version: VersionView, *, for_people: bool = False) -> Row:
    """One version, with bytes for programs and a size for people."""
    about_models: Row = {}
    if view.kind is AssetKind.MODEL:
        link = "(gone, or not shared any more)" if for_people and version.is_broken else version.link
        about_models = {"metrics": dict(version.metrics), "link": link}
    return {
        "name": version.name,
        "state": version.state.value,
        "files": version.files,
        **({"size": amount(version.bytes)} if for_people else {"bytes": version.bytes}),
        **about_models,
        "created": version.created,
        "published": version.published,
    }


def _fitting(columns: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """Without the columns that only some assets fill, where none does."""
    return {key: title for key, title in columns.items() if key not in _OF_MODELS or any(row.get(key) for row in rows)}
