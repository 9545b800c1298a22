"""Every error that Ashore raises on purpose, as one tree.

    AshoreError
    ├── BadInput        what was typed cannot be meant           exit 2
    ├── NotFound        no such thing, or none you may see       exit 1
    ├── NotAllowed      you may see it, but not do this          exit 77
    ├── AlreadyExists   the name is taken                        exit 1
    ├── InUse           somebody or something still uses it      exit 1
    ├── OverQuota       a limit would be passed                  exit 1
    ├── Failed          it was tried, and its reason is known    exit 1
    ├── Conflict        the thing is in another state by now     exit 1
    ├── Unavailable     a service that this needs is away        exit 69
    └── TimedOut        it did not happen in time                exit 69

`message` is one sentence for people; `code` is stable for programs. Drivers translate foreign errors
into this tree once and chain the original; doors translate once more (exit status, SFTP code, notice).
No error may carry a secret: messages are shown, logged and audited.
"""

from __future__ import annotations


class AshoreError(Exception):
    """Base of the tree; `message` is shown to the person as it is."""

    code = "failed"
    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(AshoreError):
    code = "bad-input"
    exit_status = 2


class NotFound(AshoreError):
    code = "not-found"


class NotAllowed(AshoreError):
    code = "not-allowed"
    exit_status = 77


class AlreadyExists(AshoreError):
    code = "already-exists"


class InUse(AshoreError):
    code = "in-use"


class OverQuota(AshoreError):
    code = "over-quota"


class Conflict(AshoreError):
    code = "conflict"


class Failed(AshoreError):
    """Of itself: whether a service was away on the way is in its reason."""


class Unavailable(AshoreError):
    code = "unavailable"
    exit_status = 69


class TimedOut(AshoreError):
    code = "timed-out"
    exit_status = 69
