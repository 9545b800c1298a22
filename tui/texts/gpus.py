"""GPUs in few words."""

from __future__ import annotations

from storage.records import Environment, GpuMode
from tui.texts import Texts, mark

_MODES = {
    GpuMode.NONE: mark("no GPU"),
    GpuMode.EXCLUSIVE: mark("exclusive"),
    GpuMode.SHARED: mark("shared"),
    GpuMode.MIG: mark("MIG device"),
}


def mode_words(texts: Texts, mode: GpuMode) -> str:
    """How cards are had."""
    return texts(_MODES[mode])


def gpu_words(texts: Texts, one: Environment) -> str:
    """`2 GPUs (exclusive): NVIDIA A100, NVIDIA A100`; what it asked for while it has none; empty for none."""
    if not one.gpus:
        return ""
    count = texts.plural("{n} GPU", "{n} GPUs", one.gpus)
    names = ", ".join(str(model) for model in one.cards.values()) if one.reserves else one.gpu_model
    words = f"{count} ({mode_words(texts, one.gpu_mode)})"
    return f"{words}: {names}" if names else words
