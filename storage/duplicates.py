"""Files with the same content, by the hashes that uploads left. What was never hashed is compared with nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import func, or_, select

from storage.access import Caller, may_see
from storage.asset_rows import below, load_foreign, load_own
from storage.asset_views import AssetView
from storage.database.transaction import Transaction
from storage.records import AssetKind, FileFact

_MOST = 1000


@dataclass(frozen=True)
class Duplicate:
    """Files of one content: `paths` in the version itself, `elsewhere` as paths of the data tree."""

    sha256: str
    size: int
    paths: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def wasted(self) -> int:
        """Bytes that are stored more than once."""
        return self.size * (len(self.paths) + len(self.elsewhere) - 1)


async def duplicates_of(tx: Transaction, caller: Caller, view: AssetView, prefix: str) -> Sequence[Duplicate]:
    """What is there more than once, and at least once below `prefix`; within what the caller may see of its workspace.

    Empty files are no duplicates. At most a thousand contents, in no particular order.
    """
    in_workspace = or_(*[below(f"{kind.folder}/{view.workspace}/") for kind in AssetKind])
    counts = in_workspace & (FileFact.sha256 != "") & (FileFact.size > 0)
    here = select(FileFact.sha256).where(below(prefix), FileFact.sha256 != "", FileFact.size > 0)
    twice = select(FileFact.sha256).where(counts, FileFact.sha256.in_(here)).group_by(FileFact.sha256)
    twice = twice.having(func.count() > 1).limit(_MOST)
    query = select(FileFact.sha256, FileFact.size, FileFact.key).where(counts, FileFact.sha256.in_(twice))
    rows = (await tx.execute(query.order_by(FileFact.sha256, FileFact.size, FileFact.key))).all()
    visible = await _visible_prefixes(tx, caller, view) if rows else frozenset()
    found = []
    for (sha256, size), group in groupby(rows, lambda row: (row[0], row[1])):
        keys = [key for _, _, key in group if "/".join(key.split("/")[:3]) in visible]
        paths = tuple(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
        elsewhere = tuple(_path(key) for key in keys if not key.startswith(prefix))
        if paths and len(keys) > 1:
            found.append(Duplicate(sha256, size, paths, elsewhere))
    return found


async def _visible_prefixes(tx: Transaction, caller: Caller, view: AssetView) -> frozenset[str]:
    look = load_own if view.workspace_id == caller.workspace_id else load_foreign
    assets = [one for kind in AssetKind for one in await look(tx, caller, kind)]
    return frozenset(
        f"{one.kind.folder}/{one.workspace}/{one.name}"
        for one in assets
        if one.workspace_id == view.workspace_id and may_see(caller, one.owned())
    )


def _path(key: str) -> str:
    """`datasets/team/mnist/v1/a` as `/datasets/mnist/v1/a`."""
    folder, _, rest = key.split("/", 2)
    return f"/{folder}/{rest}"
