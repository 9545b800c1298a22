"""What all commands have in common: help, mistakes, exit statuses, JSON, the audit trail, harmless output."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gateway.commands import help as help_command
from gateway.commands import output
from gateway.commands.catalogue import NOUNS
from gateway.commands.parsing import Noun, Verb, size
from storage.access import Caller
from storage.errors import BadInput
from storage.records import AuditEvent
from tests.gateway.commands.conftest import Desk

README = Path(help_command.__file__).with_name("README.md")
ALL = [(noun, verb) for noun in NOUNS.values() for verb in noun.verbs]


def full(noun: Noun, verb: Verb) -> str:
    return f"{noun.name} {verb.name}".strip()


async def last_event(desk: Desk, admin: Caller) -> AuditEvent:
    return (await desk.services.audit.search(admin, action="command.run", limit=1))[0]


@pytest.mark.parametrize(("noun", "verb"), ALL, ids=[full(noun, verb) for noun, verb in ALL])
async def test_every_command_has_help_and_examples_that_can_be_parsed(
    desk: Desk, alice: Caller, noun: Noun, verb: Verb
) -> None:
    answer = await desk.run(alice, f"{full(noun, verb)} --help")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith("usage: ssh gw " + noun.name)
    assert "--json" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 120
    assert verb.examples
    for example in verb.examples:
        words = shlex.split(re.split(" <| >", example)[0])
        assert words[0] == noun.name
        options = noun.parser().parse_args(words[1:])
        assert options.verb is verb


def over_ssh(line: str) -> list[str]:
    """What the gateway makes of a line that was typed into a shell: ssh joins its words with blanks."""
    words = shlex.split(line, comments=True)
    at = next((i for i, word in enumerate(words) if word == "gw" or word.endswith("@gw")), len(words))
    end = next((i for i in range(at, len(words)) if words[i] in ("<", ">", ">>", "|", "&&")), len(words))
    return shlex.split(" ".join(words[at + 1 : end]))


def parsed(words: list[str]) -> bool:
    noun = NOUNS.get(words[0]) if words else None
    return noun is None or bool(noun.parser().parse_args(words[1:]))


@pytest.mark.parametrize(("noun", "verb"), ALL, ids=[full(noun, verb) for noun, verb in ALL])
async def test_every_example_can_be_typed_as_it_is_printed(desk: Desk, alice: Caller, noun: Noun, verb: Verb) -> None:
    """ssh takes one pair of quotes away: an example that was right for a shell used to be refused by the gateway."""
    shown = (await desk.run(alice, f"{full(noun, verb)} --help")).out
    lines = re.findall(r"^  (ssh gw .*)", shown, re.MULTILINE)
    assert len(lines) >= len(verb.examples)
    for line, example in zip(lines[-len(verb.examples) :], verb.examples, strict=True):
        assert over_ssh(line) == shlex.split(re.split(" <| >", example)[0])
        assert parsed(over_ssh(line))


@pytest.mark.parametrize("readme", [README, README.parents[2] / "README.md"])
def test_every_example_of_the_readmes_can_be_typed(readme: Path) -> None:
    lines = re.findall(r"^(ssh .*)", readme.read_text(), re.MULTILINE)
    lines += re.findall(r"`(ssh [^`\n]*)`", readme.read_text())
    for line in lines:
        assert parsed(over_ssh(line)), line


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("host drain far --reason new cards", "host drain far --reason 'new cards'"),
        (
            "env set od --lifecycle scheduled --start-at 0 8 * * MON-FRI --timezone UTC",
            "env set od --lifecycle scheduled --start-at '0 8 * * MON-FRI' --timezone UTC",
        ),
    ],
)
async def test_lost_quotes_are_told(desk: Desk, alice: Caller, typed: str, meant: str) -> None:
    answer = await desk.run(alice, typed)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.splitlines()[0].endswith(f'; ssh takes quotes away, so quote it twice: ssh gw "{meant}"')


async def test_other_words_too_many_get_no_such_hint(desk: Desk, alice: Caller) -> None:
    for typed in ("env list all", "env logs train --tail 3 more", "env list --nothing"):
        answer = await desk.run(alice, typed)
        assert (answer.status, "quotes" in answer.err) == (2, False)
        assert answer.err.startswith("unrecognized arguments: ")


@pytest.mark.parametrize("noun", ["env list", "nosuch", "workspace show"])
async def test_a_command_has_so_many_words(desk: Desk, alice: Caller, noun: str) -> None:
    """Trap: argparse takes time with the square of their number, on the loop that serves everybody."""
    answer = await desk.run(alice, noun + " x" * 16_000)
    assert (answer.status, answer.out, answer.err) == (2, "", "a command has at most 500 words\n")


def test_the_readme_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `([a-z]+(?: [a-z]+)?)(?: [A-Z]+)?` \|", README.read_text(), re.MULTILINE))
    assert {name.strip() for name in listed} == {full(noun, verb) for noun, verb in ALL}


@pytest.mark.parametrize("command", ["", "help", "--help", "-h"])
async def test_what_a_newcomer_reads(desk: Desk, alice: Caller, command: str) -> None:
    answer = await desk.run(alice, command)
    assert answer.status == 0
    assert "usage" in answer.out
    assert "ssh -p 2022 alice+NAME@gw.example.org" in answer.out
    assert all(f"\n  {name}" in answer.out for name in NOUNS if name != "help")


async def test_help_about_one_command(desk: Desk, alice: Caller) -> None:
    assert (await desk.run(alice, "help env")).out == (await desk.run(alice, "env --help")).out
    assert (await desk.run(alice, "help nonsense")).status == 2
    rows = json.loads((await desk.run(alice, "help --json")).out)
    assert {row["command"] for row in rows} >= {"env create", "whoami"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("frobnicate", "commands: whoami"),
        ("evn list", "did you mean 'env'?"),
        ("env lsit", "did you mean 'list'?"),
        ("env", "needs a verb"),
        ("env show", "required: NAME"),
        ("env list --nonsense", "--nonsense"),
        ("env list --al", "--al"),
        ("env show 'train", "no closing quotation"),
        ("whoami extra", "extra"),
    ],
)
async def test_mistakes(desk: Desk, alice: Caller, admin: Caller, command: str, said: str) -> None:
    answer = await desk.run(alice, command)
    assert (answer.status, answer.out) == (2, "")
    assert said in answer.err
    event = await last_event(desk, admin)
    assert (event.outcome, event.detail) == ("failed", {"exit_status": 2})


@pytest.mark.parametrize("word", ["\x1b]0;owned\x07", "\u202egpj", "a\nb", "a\x9b2J", "x" * 5000])
async def test_nothing_foreign_moves_the_cursor(desk: Desk, alice: Caller, word: str) -> None:
    for command in (
        word,
        f"'{word}'",
        f"env '{word}'",
        f"env show '{word}'",
        f"env list '{word}'",
        f"key add '{word}'",
    ):
        answer = await desk.run(alice, command)
        assert answer.status in (1, 2)
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(answer.out + answer.err)
        assert len(answer.err) < 2500


async def test_every_run_is_one_event_without_arguments(desk: Desk, alice: Caller, admin: Caller) -> None:
    before = len(await desk.services.audit.search(admin, action="command.run"))
    await desk.run(alice, "env create train --env TOKEN=s3cret")
    events = await desk.services.audit.search(admin, action="command.run")
    assert len(events) == before + 1
    event = events[0]
    assert (event.actor, event.thing, event.outcome, event.detail) == ("alice", "env create", "ok", {"exit_status": 0})
    everything = await desk.services.audit.search(admin, limit=1000)
    assert "s3cret" not in str([(one.thing, one.detail) for one in everything])


async def test_a_refusal_is_audited_as_one(desk: Desk, alice: Caller, admin: Caller) -> None:
    assert (await desk.run(alice, "audit search")).status == 77
    assert (await last_event(desk, admin)).outcome == "refused"


async def test_a_bug_is_an_internal_error_with_a_reference(
    desk: Desk, alice: Caller, admin: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("the insides")

    monkeypatch.setattr(desk.services.environments, "list", broken)
    answer = await desk.run(alice, "env list")
    assert (answer.status, answer.out) == (70, "")
    assert "insides" not in answer.err
    reference = re.search(r"reference ([0-9a-f]{8})", answer.err)
    assert reference is not None
    assert reference[1] in caplog.text
    assert (await last_event(desk, admin)).detail == {"exit_status": 70}


# ---- words and tables --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1024", 1024),
        ("16GiB", 16 * 1024**3),
        ("512m", 512 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("2 TB", 2 * 1024**4),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "GiB", "16XB", "1e9", "٣GiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        size(text)


@pytest.mark.parametrize(("value", "text"), [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1024**3, "1GiB")])
def test_amounts(value: int, text: str) -> None:
    assert output.amount(value) == text


def test_wide_characters_take_two_cells() -> None:
    assert output.cell_len("训练a") == 5
    assert output.cell_len("e\u0301") == 1
    assert output.pad("训", 4) == "训  "
    assert output.cut("训练数据", 5) == "训练…"
    assert output.cut("train", 5) == "train"


async def test_tables_are_cut_at_a_terminals_edge_only(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create train --wait")
    assert (
        max(len(line) for line in (await desk.run(alice, "env list", has_terminal=True, width=12)).out.splitlines())
        == 12
    )
    assert "memory" in (await desk.run(alice, "env list", width=12)).out
