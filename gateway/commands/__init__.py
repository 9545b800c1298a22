"""Gateway commands, `ssh gw NOUN VERB …`: one file per noun, and the small machine that runs them.

A command asks one use case and prints what it answers; it holds no rule and no SQL.
"""

from gateway.commands.context import ChannelContext, Context
from gateway.commands.runner import run

__all__ = ["ChannelContext", "Context", "run"]
