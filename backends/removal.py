"""How an environment's record goes, with all that hangs on it. Decides nothing, and asks no engine."""

from __future__ import annotations

from sqlalchemy import delete

from storage.database.transaction import Transaction
from storage.records import Application, Environment, PublishedPort
from storage.uses import Uses


async def remove_record(tx: Transaction, uses: Uses, row: Environment) -> None:
    """Delete it: its quota, its host's room and its GPUs are free, and so is what it had mounted."""
    await uses.end(tx, row.id)
    for belonging in (Application, PublishedPort):
        await tx.execute(delete(belonging).where(belonging.environment_id == row.id))
    await tx.delete(row)
