"""What a database that is busy or away says, in the words of each driver, told to people in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.errors import Unavailable

_PASSING = ("08", "3D", "40", "53", "55P03", "57")
"""SQLSTATEs of PostgreSQL (its manual, appendix A) that pass by: connections, no such database, deadlocks, resources,
a lock that is not given in time, and a server that is stopped."""


@contextmanager
def told(*, connecting: bool = False) -> Iterator[None]:
    """Unavailable instead of what the driver says. While `connecting`, also of what a socket says."""
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise unavailable() from error
    except DBAPIError as error:
        if not _passes(error):
            raise
        raise unavailable() from error
    except OSError as error:  # asyncpg does not wrap those
        if not connecting:
            raise
        raise unavailable() from error


def _passes(error: DBAPIError) -> bool:
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return error.connection_invalidated or state.startswith(_PASSING)


def unavailable() -> Unavailable:
    """The one sentence for it."""
    return Unavailable("the database is busy or away, please try again")
