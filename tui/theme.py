"""The two colour schemes of the menu: quiet, of one family, with colour kept for what asks for attention."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="ashore-dark",
    dark=True,
    primary="#4fb3bf",
    secondary="#7a9ab5",
    accent="#8fd3c8",
    foreground="#d7dfe5",
    background="#10181f",
    surface="#16212a",
    panel="#1d2b36",
    success="#7fc98f",
    warning="#e0bd6b",
    error="#e5786d",
)
LIGHT = Theme(
    name="ashore-light",
    dark=False,
    primary="#0f7482",
    secondary="#4a6a85",
    accent="#0b5f6b",
    foreground="#1f2a33",
    background="#f7f9fa",
    surface="#edf1f3",
    panel="#dfe6ea",
    success="#2b7a3d",
    warning="#8a6100",
    error="#b3362b",
)
