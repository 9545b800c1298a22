"""What the fields of the form for a new environment mean, for somebody who never made one."""

from __future__ import annotations

from collections.abc import Mapping

from tui.texts import mark

OF_FIELDS: Mapping[str, str] = {
    "name": mark("What you call it: ssh goes to it by this name."),
    "compute": mark(
        "Where it runs. docker: a container made from an image. local: a sandbox on the gateway's machine."
    ),
    "host": mark("The machine that it runs on. Its home stays there."),
    "image": mark("Its system and programs: one of your images (i in the menu), or a name such as python:3.12."),
    "cpus": mark("The most processor cores that it may use at a time."),
    "memory": mark("The most memory that it may use; a program that takes more is ended."),
    "gpus": mark("How many graphics cards it needs; 0 for none."),
    "gpu-model": mark("Only cards whose name has this in it."),
    "gpu-mode": mark("exclusive: the card is yours alone. shared: with a few others. MIG: a part of a card."),
    "datasets": mark("Found inside at /gemini/data-1, /gemini/data-2 ..., read only."),
    "models": mark("Found inside at /gemini/pretrain1, /gemini/pretrain2 ..., read only."),
    "apps": mark("Started inside for you; the key a then shows how to open them in your browser."),
    "ports": mark("Open to everybody who reaches the gateway, without a key."),
    "lifecycle": mark("When it stops by itself: never, when nobody uses it, by the clock, or deleted after use."),
    "keep-output": mark("For how many days /gemini/output is kept when the environment is deleted."),
}
"""Id of a field → one sentence."""
