"""The steps of an archive on its way to be an image, in words and tones."""

from __future__ import annotations

from storage.records import ArchiveState
from tui.texts import mark

STEPS = {
    ArchiveState.RECEIVED: (mark("received"), "busy"),
    ArchiveState.VERIFYING: (mark("verifying"), "busy"),
    ArchiveState.LOADING: (mark("loading"), "busy"),
    ArchiveState.PUSHING: (mark("pushing"), "busy"),
    ArchiveState.READY: (mark("ready"), "good"),
    ArchiveState.FAILED: (mark("failed"), "bad"),
}
