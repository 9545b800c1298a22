"""What every small file asks and tells the records, as plain SQL that SQLite and PostgreSQL both know.

To put a statement together costs SQLAlchemy more than the database needs to answer it.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.database.engine import Database
from storage.records import VersionState
from storage.upload_rows import NOT_OVER

_STATES = ", ".join(f"'{state.value}'" for state in NOT_OVER)
_BELOW = "SELECT 'below', key FROM (SELECT key FROM file_facts WHERE key >= :first AND key < :last LIMIT 1) AS b"
_UPLOAD = (
    "SELECT 'upload', id FROM (SELECT id FROM uploads WHERE owner_id = :owner AND sent_as = :key"
    f" AND state IN ({_STATES}) LIMIT 1) AS u"
)
_SENT_AND_KNOWN = f"{_UPLOAD} UNION ALL SELECT 'etag', etag FROM file_facts WHERE key = :key"
_ABOVE = "SELECT 'above', key FROM (SELECT key FROM file_facts WHERE key IN ({}) LIMIT 1) AS a"
_OPEN = (
    "SELECT v.id FROM asset_versions AS v JOIN assets AS a ON a.id = v.asset_id WHERE v.id = :version"
    f" AND v.state = '{VersionState.UPLOADING.value}' AND NOT a.deleting"
    " AND a.owner_id = :owner AND a.workspace_id = :workspace"
    " AND NOT EXISTS (SELECT id FROM moves) AND EXISTS (SELECT id FROM users WHERE id = :caller AND NOT disabled)"
)


async def found_around(database: Database, key: str, ancestors: Sequence[str], owner_id: str) -> dict[str, str]:
    """What is known that concerns a new file `key`: `below` and `above` it another file's key, `upload` the id of
    the owner's unfinished one."""
    values = {"first": f"{key}/", "last": f"{key}0", "owner": owner_id, "key": key}  # "0" follows "/"
    parts = [_BELOW, _UPLOAD]
    if ancestors:
        names = {f"above{number}": ancestor for number, ancestor in enumerate(ancestors)}
        values |= names
        parts.append(_ABOVE.format(", ".join(f":{name}" for name in names)))
    return {str(what): str(found) for what, found in await database.quick_fetch(" UNION ALL ".join(parts), values)}


async def sent_and_known(database: Database, key: str, owner_id: str) -> tuple[bool, str]:
    """Whether the owner has an unfinished upload to `key`, and the ETag of the file that was stored there, if any."""
    rows = await database.quick_fetch(_SENT_AND_KNOWN, {"owner": owner_id, "key": key})
    found = {str(what): str(value) for what, value in rows}
    return "upload" in found, found.get("etag", "")


async def is_known(database: Database, key: str) -> bool:
    """Whether a file of this key was stored through Ashore and not removed through it since."""
    return bool(await database.quick_fetch("SELECT key FROM file_facts WHERE key = :key", {"key": key}))


async def is_open(database: Database, version_id: str, *, owner_id: str, workspace_id: str, caller_id: str) -> bool:
    """Whether nothing has changed for a writer: the version is there and not published, its asset where and whose it
    was, the caller not locked out, and nobody moves anything, wherever that may be."""
    values = {"version": version_id, "owner": owner_id, "workspace": workspace_id, "caller": caller_id}
    return bool(await database.quick_fetch(_OPEN, values))


async def is_locked_out(database: Database, user_id: str) -> bool:
    return bool(await database.quick_fetch("SELECT id FROM users WHERE id = :id AND disabled", {"id": user_id}))
