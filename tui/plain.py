"""The menu as plain lines, for terminals that cannot place a cursor, for screen readers, and for pipes.

Questions and numbered answers only; nothing is drawn twice and nothing is coloured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from rich.cells import cell_len

from backends.planning import Request
from backends.services import Services
from storage.access import Caller
from storage.clock import now
from storage.errors import AshoreError, BadInput, NotFound
from storage.names import printable
from storage.records import Environment
from tui.desk import Address, Desk
from tui.reader import LineReader
from tui.screens.environments import state_words
from tui.terminal import Terminal
from tui.texts import translator
from tui.texts.formats import age_words
from tui.texts.sentences import in_language


async def run(
    terminal: Terminal, services: Services, caller: Caller, language: str, *, address: Address | None = None
) -> int:
    """Serve until the person leaves or the input ends; the exit status of the session."""
    try:
        chosen = await services.accounts.language_of(caller)
    except AshoreError:
        chosen = ""
    desk = Desk(services, caller, translator(chosen or language), address or services.address)
    reader = LineReader(terminal)
    try:
        await PlainMenu(desk, terminal, reader).run()
    finally:
        reader.close()
    return 0


class PlainMenu:
    """A loop of one prompt and one action."""

    def __init__(self, desk: Desk, terminal: Terminal, reader: LineReader) -> None:
        self._desk = desk
        self._texts = desk.texts
        self._terminal = terminal
        self._reader = reader
        self._environments: Sequence[Environment] = ()

    async def run(self) -> None:
        """Until `q`, or the end of input."""
        t = self._texts
        self._say(t("Ashore: welcome, {name}.", name=self._desk.caller.name))
        await self._guarded(self._list)
        while (
            line := await self._ask(t("A number to connect, n new, s start, x stop, d delete, l list, q quit"))
        ) is not None:
            word, _, rest = line.strip().partition(" ")
            if word.lower() in ("q", "quit", "exit"):
                break
            if word:
                await self._guarded(partial(self._act, word.lower(), rest.strip()))
        self._say(t("Bye."))

    async def _act(self, word: str, rest: str) -> None:
        t, environments, caller = self._texts, self._desk.services.environments, self._desk.caller
        if word in ("l", "list"):
            await self._list()
        elif word in ("n", "new"):
            await self._create(rest)
        elif word in ("s", "start"):
            await environments.start(caller, await self._which(rest))
            await self._list()
        elif word in ("x", "stop"):
            await environments.stop(caller, await self._which(rest))
            await self._list()
        elif word in ("d", "delete"):
            await self._delete(await self._which(rest))
        elif word in ("lang", "language"):
            await self._change_language()
        elif word.isdigit() or any(one.name == word for one in self._environments):
            await self._connect(self._named(word))
        else:
            raise BadInput(t("I do not know '{word}'.", word=printable(word, limit=40)))

    # ---- actions ---------------------------------------------------------------------------------------------
    async def _list(self) -> None:
        self._environments = await self._desk.services.environments.list(self._desk.caller)
        if not self._environments:
            self._say(self._texts("You have no environment yet. Type n to make one."))
            return
        moment = now()
        width = max(cell_len(one.name) for one in self._environments)
        for number, one in enumerate(self._environments, 1):
            pad = " " * (width - cell_len(one.name))
            news = in_language(self._texts, one.reason or one.progress)
            facts = [state_words(self._texts, one), one.compute, age_words(self._texts, one.created, moment), news]
            self._say(f"{number:>3}  {one.name}{pad}  " + "  ".join(fact for fact in facts if fact))

    async def _create(self, name: str) -> None:
        t, environments = self._texts, self._desk.services.environments
        name = name or await self._answer(t("Name [{default}]", default="dev")) or "dev"
        offered = environments.planner.offered(self._desk.caller)
        compute = offered[0] if offered else ""
        if len(offered) > 1:
            question = t("Compute: {offered} [{default}]", offered=", ".join(offered), default=compute)
            compute = await self._answer(question) or compute
        request = Request(name=name, compute=compute)
        plan = await environments.plan(self._desk.caller, request)
        if plan.image:
            image = await self._answer(t("Image [{default}]", default=plan.image))
            request = Request(name=name, compute=compute, image=image or plan.image)
        await environments.create(self._desk.caller, request)
        self._say(t("{name} is being made.", name=name))
        await environments.wait(self._desk.caller, name, on_progress=self._say)
        self._say(t("{name} is ready.", name=name))
        await self._list()

    async def _delete(self, name: str) -> None:
        t = self._texts
        answer = await self._answer(t("This deletes {name} with everything in it. Type its name to confirm", name=name))
        if answer != name:
            self._say(t("Nothing was deleted."))
            return
        await self._desk.services.environments.delete(self._desk.caller, name)
        self._say(t("{name} is being deleted.", name=name))

    async def _connect(self, name: str) -> None:
        self._reader.close()
        try:
            status = await self._terminal.open_shell(name)
        finally:
            self._reader.resume()
        self._say(self._texts("The shell in {name} ended with status {status}.", name=name, status=status))

    async def _change_language(self) -> None:
        language = "en" if self._texts.language == "zh" else "zh"
        await self._desk.services.accounts.choose_language(self._desk.caller, language)
        self._texts = translator(language)
        await self._list()

    # ---- asking and saying -----------------------------------------------------------------------------------
    async def _which(self, word: str) -> str:
        word = word or await self._answer(self._texts("Which one? (number or name)"))
        return self._named(word)

    def _named(self, word: str) -> str:
        """The environment that `word` means: a number of the list, or a name."""
        if word.isdigit() and 1 <= int(word[:9]) <= len(self._environments):
            return self._environments[int(word[:9]) - 1].name
        if any(one.name == word for one in self._environments):
            return word
        raise NotFound(self._texts("There is no '{word}' in the list.", word=printable(word, limit=40)))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except AshoreError as error:
            self._say(in_language(self._texts, error.message))

    async def _ask(self, question: str) -> str | None:
        self._reader.write(f"{_safe(question)}: ")
        return await self._reader.read()

    async def _answer(self, question: str) -> str:
        """An answer, stripped; the end of input is an empty one, and the loop sees it next."""
        return (await self._ask(question) or "").strip()

    def _say(self, text: str) -> None:
        self._reader.write(_safe(text) + "\n")


def _safe(text: str) -> str:
    return printable(text, limit=2000)
