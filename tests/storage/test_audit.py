"""The trail holds together, and tells where it does not."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, update

from storage.access import Caller
from storage.audit import AuditTrail, Event
from storage.database.engine import Database
from storage.errors import NotAllowed, Unavailable
from storage.records import AuditEvent
from tests.databases import KINDS

DATABASES = KINDS


async def test_what_comes_after_the_end_is_refused(database: Database) -> None:
    """A task that is cancelled last must not wait for a writer that has gone."""
    audit = AuditTrail(database)
    await audit.start()
    await audit.record(Event("test"))
    await audit.close()
    with pytest.raises(Unavailable):
        await audit.record(Event("late"))


async def test_lazy_events_share_a_transaction_and_are_written_when_somebody_hurries(database: Database) -> None:
    audit = AuditTrail(database)
    await audit.start()
    lazy = [asyncio.create_task(audit.record(Event("lazy", detail={"n": n}), lazily=True)) for n in range(20)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in lazy)
    await audit.record(Event("at once"))
    await asyncio.sleep(0)
    assert all(task.done() for task in lazy)
    late = asyncio.create_task(audit.record(Event("lazy"), lazily=True))
    await asyncio.wait_for(late, 30)  # nobody hurries
    last = asyncio.create_task(audit.record(Event("lazy"), lazily=True))
    await asyncio.sleep(0)
    await audit.close()
    await last
    assert (await audit.verify()).events == 23


async def test_to_hurry_without_an_event_writes_nothing(audit: AuditTrail, caplog: pytest.LogCaptureFixture) -> None:
    audit.hurry()
    await asyncio.sleep(0.05)
    await audit.record(Event("test"))
    assert (await audit.verify()).events == 1
    assert not caplog.records


async def test_events_that_come_together_form_one_chain(audit: AuditTrail) -> None:
    await asyncio.gather(*(audit.record(Event("test", detail={"n": n})) for n in range(50)))
    verdict = await audit.verify()
    assert (verdict.events, verdict.broken_at) == (50, None)


async def test_a_changed_event_is_found(audit: AuditTrail, database: Database) -> None:
    for n in range(5):
        await audit.record(Event("test", detail={"n": n}))
    async with database.writing() as tx:
        await tx.execute(update(AuditEvent).where(AuditEvent.seq == 3).values(actor="mallory"))
    assert (await audit.verify()).broken_at == 3


@pytest.mark.parametrize(("victim", "where"), [(2, 2), (5, 5)])
async def test_a_removed_event_is_found(audit: AuditTrail, database: Database, victim: int, where: int) -> None:
    for n in range(5):
        await audit.record(Event("test", detail={"n": n}))
    async with database.writing() as tx:
        await tx.execute(delete(AuditEvent).where(AuditEvent.seq == victim))
    assert (await audit.verify()).broken_at == where


async def test_control_characters_never_enter(audit: AuditTrail, admin: Caller) -> None:
    await audit.record(Event("test", actor="\x1b[31mred", thing="a\nb"))
    newest = (await audit.search(admin, action="test"))[0]
    assert "\x1b" not in newest.actor
    assert "\n" not in newest.thing


async def test_only_administrators_search(audit: AuditTrail, alice: Caller) -> None:
    with pytest.raises(NotAllowed):
        await audit.search(alice)


@pytest.mark.timeout(60)
async def test_an_event_that_cannot_be_written_takes_no_other_along(audit: AuditTrail) -> None:
    """The writer died of it, and from then on everything that is audited waited for ever."""
    poison = audit.record(Event("test", detail={"n": object()}))
    results = await asyncio.gather(
        audit.record(Event("test")), poison, audit.record(Event("test")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), Unavailable, type(None)]
    await audit.record(Event("test"))
    verdict = await audit.verify()
    assert (verdict.events, verdict.broken_at) == (3, None)
