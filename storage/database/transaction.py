"""Transactions whose calls are never left half-way by a cancellation.

A call of SQLite runs in a thread and cannot be stopped there. If the task that waits for it is cancelled, SQLAlchemy
throws the connection away while the call goes on, and under load such connections have kept the write lock for longer
than others wait for it. So a call is waited for, and the cancellation is raised when it has ended: the transaction is
then rolled back and its connection goes back to the pool like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

T = TypeVar("T")
Call = Callable[..., Coroutine[Any, Any, Any]]


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end in any case; a cancellation of the caller is raised after it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # once more: the first one is raised below
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # nobody else will ask for it
        raise


def _to_its_end(call: Call) -> Call:
    async def wrapper(*arguments: Any, **options: Any) -> Any:
        return await finished(call(*arguments, **options))

    return wrapper


class Transaction(AsyncSession):
    """As SQLAlchemy's; see above for what is different."""


for _name in (
    *("connection", "execute", "scalar", "scalars", "get", "get_one", "stream", "stream_scalars"),
    *("delete", "merge", "refresh", "flush", "commit", "rollback", "close"),
):
    setattr(Transaction, _name, _to_its_end(getattr(AsyncSession, _name)))
