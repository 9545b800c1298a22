"""In which language a terminal is spoken to: the one that its owner chose in the menu, else that of the locale.

Commands, and whatever has no terminal, speak English: scripts read them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway.session import ClientSession
from storage.access import Caller
from storage.accounts import Accounts
from storage.errors import AshoreError
from tui.texts import translator
from tui.texts.sentences import in_language


async def language_of(accounts: Accounts, caller: Caller, session: ClientSession) -> str:
    """`zh` or `en`."""
    return await accounts.language_of(caller) or _of_locale(session)


async def words_for(accounts: Accounts, caller: Caller | None, session: ClientSession) -> Callable[[str], str]:
    """What turns a sentence of a use case into the one that the person at this terminal reads."""
    if session.terminal is None:
        return str
    try:
        language = await language_of(accounts, caller, session) if caller is not None else _of_locale(session)
    except AshoreError:  # whoever is refused because the database is away still reads why
        language = _of_locale(session)
    return partial(in_language, translator(language))


def _of_locale(session: ClientSession) -> str:
    variables = session.variables
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if variables.get(name):
            return "zh" if variables[name].startswith("zh") else "en"
    return "en"
