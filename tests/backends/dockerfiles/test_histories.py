"""Any Dockerfile, written in any way: it means the same, and nothing makes the parser fall over."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from backends.dockerfiles.reading import is_continued, parse
from backends.dockerfiles.recipes import recipe
from backends.dockerfiles.rules import check
from backends.dockerfiles.source import Dockerfile
from storage.names import printable

Meaning = list[tuple[str, tuple[str, ...], str]]
_WORD = st.text(st.sampled_from("abcxyz019-_=./:$'\"\\`#&|;[]{}<>()\u4f60\u00e9"), min_size=1, max_size=12)
_LINES = st.lists(
    st.builds(
        lambda keyword, words: f"{keyword} {' '.join(words)}",
        st.sampled_from(["RUN", "ENV", "ARG", "LABEL", "WORKDIR", "USER", "From", "copy", "ONBUILD"]),
        st.lists(_WORD, min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=8,
)


def meaning(found: Dockerfile) -> Meaning:
    return [
        (one.keyword, tuple(" ".join(flag.value.split()) for flag in one.flags), " ".join(one.rest.value.split()))
        for one in found.instructions
    ]


def written(line: str, draw: Callable[[st.SearchStrategy[object]], object], escape: str) -> str:
    """The same line, continued at some of its blanks, with comments, blank lines and carriage returns in between."""
    pieces = line.split(" ")
    found = pieces[0]
    for piece in pieces[1:]:
        noise = draw(st.sampled_from(["", "", f" {escape}\n", f" {escape} \t\n", f" {escape}\r\n"]))
        if noise and not found.endswith(escape) and not piece.lstrip().startswith("#"):
            between = draw(st.sampled_from(["", "# a comment\n", "  # USER x \\\n", "\n", "# FROM `\r\n\n"]))
            found += f"{noise}{between} {piece}"
        else:
            found += f" {piece}"
    return found


@given(_LINES, st.sampled_from("\\`"), st.data())
def test_continuations_comments_and_ends_of_lines_change_no_meaning(
    lines: list[str], escape: str, data: st.DataObject
) -> None:
    plain = [line.replace("<<", "<") for line in lines]
    plain = [line for line in plain if not is_continued(line, escape)]
    head = f"# escape={escape}\n"
    straight = parse(head + "\n".join(plain))
    noisy = parse(head + "".join(f"{written(line, data.draw, escape)}\n\n# c\n" for line in plain))
    assert meaning(noisy) == meaning(straight)
    assert len(check(noisy)) == len(check(straight))


@given(_LINES, st.sampled_from("\\`"))
def test_a_recipe_means_what_was_written(lines: list[str], escape: str) -> None:
    """Printed and read again, every instruction is there, once, below FROM; nothing is joined to its neighbour."""
    body = [line.replace("<<", "<") for line in lines if not line.startswith(("copy", "ARG"))]
    found = parse(f"# escape={escape}\n" + "\n".join(body))
    if found.problems or any(one.flags for one in found.instructions):  # no flag is possible in these
        return
    made = recipe(found, "debian:bookworm")
    again = parse(made.text)
    assert not again.problems
    assert again.escape == escape
    assert meaning(again) == [("FROM", (), "debian:bookworm"), *meaning(found)]
    assert len(made.lines) == len(again.instructions)


@given(st.text(max_size=400) | st.text("RUNADCOPYruns <'\"\\`#\n\r\t-EOF[]=$", max_size=400))
def test_nothing_makes_the_parser_fall_over(text: str) -> None:
    """And whatever passes the rules becomes a recipe in which a builder finds the same instructions."""
    found = parse(text)
    problems = check(found)
    lines = text.split("\n")
    for problem in problems:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1 or problem.line == 1
        assert printable(problem.message) == problem.message
    if problems:
        return
    again = parse(recipe(found, "debian:bookworm").text)
    assert not again.problems
    assert not any(one.heredocs for one in again.instructions)
    allowed = {"ADD", "ARG", "COPY", "ENV", "HEALTHCHECK", "LABEL", "MAINTAINER", "RUN", "SHELL", "STOPSIGNAL"}
    assert {one.keyword for one in again.instructions} <= allowed | {"FROM", "VOLUME", "WORKDIR"}
