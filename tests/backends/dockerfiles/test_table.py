"""Dockerfiles as people write them, and as people who want out of the rules would: what is said of each, and where."""

from __future__ import annotations

import gc
import time

import pytest

from backends.dockerfiles.reading import LARGEST, LONGEST, MOST_PROBLEMS, decode, parse
from backends.dockerfiles.recipes import recipe
from backends.dockerfiles.rules import check
from storage.errors import BadInput

SH = '["/bin/sh", "-c", '

GOOD = {
    "one line": ("RUN true\n", ["RUN true"]),
    "without an end of line": ("RUN true", ["RUN true"]),
    "small letters": ("run true", ["RUN true"]),
    "tabs": ("\tRUN\t\ttrue", ["RUN true"]),
    "comments and blank lines": ("# hello\n\n   # again\nRUN true # not one\n", ["RUN true # not one"]),
    "continued": ("RUN a \\\n  && b\n", ["RUN a   && b"]),
    "continued with blanks behind": ("RUN a \\ \t\n b\n", ["RUN a  b"]),
    "continued within the keyword": ("RU\\\nN true", ["RUN true"]),
    "begins with a continuation": ("\\\nRUN true", ["RUN true"]),
    "comment inside": ("RUN a \\\n# RUN rm\n  # USER x\n && b", ["RUN a  && b"]),
    "comment inside that ends with a backslash": ("RUN a \\\n# c \\\n b\nRUN d", ["RUN a  b", "RUN d"]),
    "comment that ends with a backslash": ("# c \\\nRUN d", ["RUN d"]),
    "blank line inside": ("RUN a \\\n\n b", ["RUN a  b"]),
    "two backslashes end a line": ("RUN echo a\\\\\nRUN b", ["RUN echo a\\\\", "RUN b"]),
    "continuation at the end of file": ("RUN a \\", ["RUN a"]),
    "forbidden words in a continuation": ("RUN apt \\\nuseradd x \\\nUSER \\\nFROM", ["RUN apt useradd x USER FROM"]),
    "forbidden words in a string": ('RUN echo "\\\nUSER root"', ['RUN echo "USER root"']),
    "CRLF": ("RUN a \\\r\n && b\r\nENV A=1\r\n", ["RUN a  && b", "ENV A=1"]),
    "BOM": ("\ufeffRUN true", ["RUN true"]),
    "check directive": ("# check=skip=all\nRUN true", ["RUN true"]),
    "unknown directive is a comment": ("# syntaxx=a\n# syntax=b\nRUN true", ["RUN true"]),
    "syntax after a comment is a comment": ("# hi\n# syntax=b\nRUN true", ["RUN true"]),
    "syntax after a blank line is a comment": ("\n# syntax=b\nRUN true", ["RUN true"]),
    "escape directive": ("# escape=`\nRUN a `\n b \\\nRUN c\\\\", ["RUN a  b \\", "RUN c\\\\"]),
    "escape directive in capitals": ("#ESCAPE = `\nRUN a `\n b", ["RUN a  b"]),
    "escape too late is a comment": ("RUN a\n# escape=`\nRUN b \\\n c", ["RUN a", "RUN b  c"]),
    "exec form": ('RUN ["a", "b c"]', ['RUN ["a", "b c"]']),
    "exec form over two lines": ('RUN ["a", \\\n "b"]', ['RUN ["a", "b"]']),
    "a test in brackets is no exec form": ("RUN [ -f x ] && y", ["RUN [ -f x ] && y"]),
    "heredoc": ("RUN <<EOF\na\nb\nEOF\nRUN c", [f'RUN {SH}"a\\nb\\n"]', "RUN c"]),
    "heredoc with forbidden words": ("RUN <<EOF\nUSER x\nFROM y\nEOF", [f'RUN {SH}"USER x\\nFROM y\\n"]']),
    "heredoc is no continuation": ("RUN <<EOF\na \\\nEOF\nRUN b", [f'RUN {SH}"a \\\\\\n"]', "RUN b"]),
    "heredoc with comment": ("RUN <<EOF\n# a\n\nEOF", [f'RUN {SH}"# a\\n\\n"]']),
    "heredoc without tabs": ("RUN <<-EOF\n\ta\n\tEOF", [f'RUN {SH}"a\\n"]']),
    "heredoc in quotes": ("RUN <<'E F'\na\nE F", [f'RUN {SH}"a\\n"]']),
    "heredoc for a program": (
        "RUN cat <<EOF >x\na\nEOF", [f'RUN {SH}"cat \\u003c\\u003cEOF >x\\na\\nEOF"]'],
    ),
    "heredocs": (
        "RUN cat <<A <<B\n1\nA\n2\nB", [f'RUN {SH}"cat \\u003c\\u003cA \\u003c\\u003cB\\n1\\nA\\n2\\nB"]'],
    ),
    "heredoc with a shell": (
        'SHELL ["/bin/bash", "-c"]\nRUN <<EOF\na\nEOF',
        ['SHELL ["/bin/bash", "-c"]', 'RUN ["/bin/bash", "-c", "a\\n"]'],
    ),
    "heredoc with CRLF": ("RUN <<EOF\r\na\r\nEOF\r\nRUN b", [f'RUN {SH}"a\\n"]', "RUN b"]),
    "heredoc named in a continuation": ("RUN a \\\n <<EOF\nb\nEOF", [f'RUN {SH}"a  \\u003c\\u003cEOF\\nb\\nEOF"]']),
    "shift is no heredoc": ("RUN echo $((1<<2))", [f'RUN {SH}"echo $((1\\u003c\\u003c2))"]']),
    "here string is no heredoc": ('RUN cat <<< "a"', [f'RUN {SH}"cat \\u003c\\u003c\\u003c \\"a\\""]']),
    "heredoc in quotes of the shell is none": (
        'RUN echo "x <<EOF"\nRUN b', [f'RUN {SH}"echo \\"x \\u003c\\u003cEOF\\""]', "RUN b"],
    ),
    "copy a document": ("COPY <<'F' /etc/x\n$A\nF", ['COPY ["documents/1/F", "/etc/x"]']),
    "copy two documents": ("COPY <<a <<b /e/\n1\na\n2\nb", ['COPY ["documents/1/a", "documents/2/b", "/e/"]']),
    "copy with owner": ("COPY --chown=1000:1000 <<a /e\n1\na", ['COPY --chown=1000:1000 ["documents/1/a", "/e"]']),
    "add a document": ("ADD <<a /e\n1\na", ['ADD ["documents/1/a", "/e"]']),
    "env": ("ENV A=1 B='two words' C=\"3\"", ["ENV A=1 B='two words' C=\"3\""]),
    "old env": ("ENV A one two", ["ENV A one two"]),
    "env with an escaped blank": ("ENV A=a\\ b", ["ENV A=a\\ b"]),
    "args": ("ARG A B=2", ["ARG A", "ARG B=2"]),
    "label": ("LABEL org.x.y=1 team='a b'", ["LABEL org.x.y=1 team='a b'"]),
    "workdir": ("WORKDIR /a b", ["WORKDIR /a b"]),
    "volume": ("VOLUME /d /e", ["VOLUME /d /e"]),
    "stopsignal": ("STOPSIGNAL 9", ["STOPSIGNAL 9"]),
    "health": ("HEALTHCHECK --interval=5m --retries=3 CMD x", ["HEALTHCHECK --interval=5m --retries=3 CMD x"]),
    "no health": ("HEALTHCHECK NONE", ["HEALTHCHECK NONE"]),
    "maintainer": ("MAINTAINER me", ["MAINTAINER me"]),
    "chinese": ("RUN echo 你好", ["RUN echo 你好"]),
}  # fmt: skip

BAD = {
    "empty": ("", ["1:1 there is no instruction"]),
    "only comments": ("# a\n\n", ["1:1 there is no instruction"]),
    "FROM": ("FROM debian", ["1:1 FROM is not allowed"]),
    "from in small letters behind blanks": ("RUN a\n  from x", ["2:3 FROM is not allowed"]),
    "EXPOSE": ("EXPOSE 22", ["1:1 EXPOSE is not allowed"]),
    "CMD": ('CMD ["sh"]', ["1:1 CMD is not allowed"]),
    "ENTRYPOINT": ("ENTRYPOINT x", ["1:1 ENTRYPOINT is not allowed"]),
    "USER": ("USER root", ["1:1 USER is not allowed"]),
    "USER behind a tab": ("USER\troot", ["1:1 USER is not allowed"]),
    "USER in two lines": ("US\\\nER root", ["1:1 USER is not allowed"]),
    "USER behind a lone continuation": ("\\\n\\\nUSER root", ["3:1 USER is not allowed"]),
    "USER behind a wide blank": ("\u00a0\u3000USER root", ["1:3 USER is not allowed"]),
    "USER after a heredoc": ("RUN <<EOF\nEOF\nUSER x", ["3:1 USER is not allowed"]),
    "USER after what is no heredoc": ('RUN echo "<<EOF"\nUSER x\nEOF', ["2:1 USER is not", "3:1 there is no"]),
    "USER after an escaped heredoc": ("# escape=`\nRUN a `\n\nUSER x\nUSER y", ["5:1 USER is not allowed"]),
    "ONBUILD": ("ONBUILD USER root", ["1:1 ONBUILD is not allowed"]),
    "ONBUILD with a heredoc": ("ONBUILD RUN <<EOF\nUSER x\nEOF", ["1:1 ONBUILD is not allowed"]),
    "syntax": ("# syntax=docker/dockerfile:1\nRUN a", ["1:1 '# syntax=' is not allowed"]),
    "syntax without blanks": ("#SYNTAX=x\nRUN a", ["1:1 '# syntax=' is not allowed"]),
    "syntax behind a BOM": ("\ufeff# syntax = x\nRUN a", ["1:1 '# syntax=' is not allowed"]),
    "syntax behind escape": ("# escape=\\\n# syntax=x\nRUN a", ["2:1 '# syntax=' is not allowed"]),
    "syntax behind a shebang": ("#!/bin/x\n# syntax=x\nRUN a", ["2:1 '# syntax=' is not allowed"]),
    "syntax in slashes": ("// syntax=x\nRUN a", ["1:1 there is no instruction '//'"]),
    "syntax in JSON": ('{"syntax": "x"}', ['1:1 there is no instruction \'{"SYNTAX":\'']),
    "escape twice": ("# escape=`\n# escape=\\\nRUN a", ["2:1 '# escape=' may stand here once only"]),
    "escape of another kind": ("# escape=^\nRUN a", ["1:1 '# escape=' can be"]),
    "misspelt": ("RNU true", ["1:1 there is no instruction 'RNU' (did you mean RUN?)"]),
    "no argument": ("RUN\nENV", ["1:1 RUN needs an argument", "2:1 ENV needs an argument"]),
    "only a continuation": ("\\\n", ["1:1 there is nothing but the end of a line"]),
    "ADD of a URL": ("ADD https://x/y /z", ["1:5 ADD of an address is not allowed"]),
    "ADD of a URL in capitals": ("ADD HTTPS://x/y /z", ["1:5 ADD of an address"]),
    "ADD of a URL in quotes": ('ADD "https://x/y" /z', ["1:5 ADD of an address"]),
    "ADD of a URL as JSON": ('ADD ["https://x/y", "/z"]', ["1:5 ADD of an address"]),
    "ADD of git": ("ADD git@github.com:a/b.git /z", ["1:5 ADD of an address"]),
    "ADD of git by protocol": ("ADD git://x/y /z", ["1:5 ADD of an address"]),
    "ADD of a variable": ("ARG U=https://x\nADD $U /z", ["2:5 ADD of a variable is not allowed"]),
    "ADD of half a variable": ("ARG P=ttps://\nADD h${P}x /z", ["2:5 ADD of a variable is not allowed"]),
    "ADD of a URL in two lines": ("ADD htt\\\nps://x /z", ["1:5 ADD of an address"]),
    "ADD of a file": ("ADD a.tar /z", ["1:5 there is no file for ADD"]),
    "COPY of files": ("COPY a \\\n  b /z/", ["1:6 there is no file for COPY", "2:3 there is no file for COPY"]),
    "COPY without a target": ("COPY <<A\n1\nA", ["1:1 COPY needs a source and a target"]),
    "COPY of another image": ("COPY --from=evil /a /b", ["1:6 COPY --from is not", "1:18 there is no file"]),
    "COPY with a mode": ("COPY --chmod=777 <<A /b\nA", ["1:6 COPY --chmod is not offered"]),
    "COPY with variables": ("COPY <<A /b\n$X\nA", ["1:6 variables in a document"]),
    "COPY to a path as name": ("COPY <<../x /b\n../x", ["1:6 this document becomes a file"]),
    "COPY of two to a file": ("COPY <<A <<B /b\nA\nB", ["1:14 with several sources"]),
    "heredoc without an end": ("RUN cat <<EOF\nUSER x", ["1:9 this heredoc has no end: no line is just 'EOF'"]),
    "heredoc whose end has a blank": ("RUN <<EOF\na\nEOF ", ["1:5 this heredoc has no end"]),
    "heredoc whose end is set in": ("RUN <<EOF\na\n\tEOF", ["1:5 this heredoc has no end"]),
    "RUN with a secret": ("RUN --mount=type=secret,id=x a", ["1:5 RUN --mount is not offered"]),
    "RUN with ssh": ("RUN --mount=type=ssh a", ["1:5 RUN --mount is not offered"]),
    "RUN with a mount in two lines": ("RUN \\\n  --mount=type=cache,target=/x \\\n  a", ["2:3 RUN --mount is not"]),
    "RUN with rights": ("RUN --security=insecure a", ["1:5 RUN --security is not offered"]),
    "RUN on the host's network": ("RUN --network=host a", ["1:5 RUN --network is not offered"]),
    "RUN with an unknown flag": ("RUN --fast a", ["1:5 RUN has no flag --fast"]),
    "RUN with an escaped flag": ("RUN --mo\\unt=type=ssh a", ["1:5 RUN --mount is not offered"]),
    "RUN with a bare --": ("RUN -- a", ["1:5 a bare -- is not allowed"]),
    "RUN with a mount behind a bare --": (
        "RUN -- --mount=type=bind,from=x,target=/x a", ["1:5 a bare -- is not allowed", "1:8 a command may not begin"],
    ),
    "RUN with a bare -- in quotes": (
        'RUN --"" --network=host a', ["1:5 a bare -- is not allowed", "1:10 a command may not begin"],
    ),
    "HEALTHCHECK with a bare --": ("HEALTHCHECK -- CMD x", ["1:13 a bare -- is not allowed"]),
    "RUN of nothing": ("RUN []", ["1:5 RUN needs a command"]),
    "numbers in brackets": ("RUN [1, 2]", ["1:5 an array in brackets may hold strings"]),
    "brackets in brackets": ("RUN " + "[" * 20000, ["1:5 an array in brackets may hold strings"]),
    "ENV without a value": ("ENV A", ["1:5 ENV needs a name and a value"]),
    "ENV with half a pair": ("ENV A=1 B", ["1:9 'B' has no value"]),
    "ENV without a name": ("ENV =1", ["1:5 there is no name"]),
    "ENV with an open quote": ('ENV A="1', ["1:7 this quote has no end"]),
    "ARG of another kind": ("ARG 1A", ["1:5 '1A' is no NAME"]),
    "our label": ("LABEL ashore=0123", ["1:7 labels that begin with 'ashore'"]),
    "our label in quotes": ('LABEL a=1 "ash"ore.x=1', ["1:11 labels that begin with 'ashore'"]),
    "our label escaped": ("LABEL ash\\ore=1", ["1:7 labels that begin with 'ashore'"]),
    "our label in a variable": ("LABEL a${X}=1", ["1:7 labels that begin with 'ashore'"]),
    "SHELL without brackets": ("SHELL /bin/bash", ["1:7 SHELL needs its words in brackets"]),
    "HEALTHCHECK of another kind": ("HEALTHCHECK curl x", ["1:13 HEALTHCHECK is followed by"]),
    "HEALTHCHECK with a wrong time": ("HEALTHCHECK --timeout=soon CMD x", ["1:13 --timeout cannot be"]),
    "a flag without a value": ("COPY --chown= <<A /b\nA", ["1:6 --chown needs a value"]),
    "a flag twice": ("COPY --chown=a --chown=b <<A /b\nA", ["1:16 --chown is there twice"]),
    "NUL": ("RUN a\0b", ["1:6 the character NUL"]),
    "escape sequence": ("RUN a\nRUN \x1b[2J", ["2:5 the character U+001B"]),
    "carriage return alone": ("RUN a\rUSER b", ["1:6 the character U+000D"]),
    "form feed as a blank": ("USER\froot", ["1:1 there is no instruction", "1:5 the character U+000C"]),
    "bidi override": ("RUN a # \u202e b", ["1:9 the character U+202E"]),
    "line separator": ("RUN a\u2028USER b", ["1:6 the character U+2028"]),
    "a backslash that joins nothing": ("RUN a \\ \\", ["1:7 a single \\ at the end"]),
    "too long": ("RUN " + "a" * LONGEST, ["1:1 an instruction may have"]),
    "too long a document": ("RUN <<E\n" + "a\n" * LONGEST + "E", ["1:1 an instruction may have"]),
    "too large": ("#" * (LARGEST + 1), ["1:1 a Dockerfile may have 256 KiB"]),
    "several at once": ("FROM a\nRUN ok\nUSER b\nADD http://c /d", ["1:1 FROM", "3:1 USER", "4:5 ADD of an address"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_written_well_becomes_a_recipe(name: str) -> None:
    text, steps = GOOD[name]
    found = parse(text)
    assert [str(problem) for problem in check(found)] == []
    made = recipe(found, "debian:bookworm", {"x": "1"}).text.splitlines()
    head = made[: made.index("FROM debian:bookworm")]
    assert head == ([f"# escape={found.escape}"] if found.escape == "`" else [])
    assert made[len(head) + 1 :] == ['LABEL x="1"', *steps]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_built_is_said_with_its_place(name: str) -> None:
    text, expected = BAD[name]
    said = [f"{problem.line}:{problem.column} {problem.message}" for problem in check(parse(text))]
    assert len(said) == len(expected), said
    for sentence, beginning in zip(said, expected, strict=True):
        assert sentence.startswith(beginning), said


def test_documents_become_files_of_the_context() -> None:
    found = parse("COPY <<-a <<'b' /e/\n\tone\n\ta\n$two\nb\nADD <<c /f\n\tthree\nc")
    assert recipe(found, "x").files == {
        "documents/1/a": b"one\n", "documents/2/b": b"$two\n", "documents/3/c": b"\tthree\n",
    }  # fmt: skip


def test_a_document_with_a_shebang_is_run_as_a_file() -> None:
    made = recipe(parse("RUN <<EOF\n#!/usr/bin/python3\nprint(1)\nEOF"), "x").text
    assert '\\"$f\\"; s=$?' in made
    assert '"#!/usr/bin/python3\\nprint(1)\\n"]' in made


def test_a_recipe_tells_in_which_line_a_step_was_written() -> None:
    found = parse("# a\nRUN a \\\n b\n\nRUN <<E\nE\nARG A B")
    assert recipe(found, "x", {"l": "1"}).lines == [0, 0, 2, 5, 7, 7]


def test_what_is_not_utf_8_is_said_with_its_place() -> None:
    assert decode("RUN é".encode()) == "RUN é"
    with pytest.raises(BadInput, match="line 2, column 5: the Dockerfile is not UTF-8"):
        decode(b"RUN a\nRUN \xff")
    with pytest.raises(BadInput, match="256 KiB"):
        decode(b"#" * (LARGEST + 1))


@pytest.mark.parametrize(
    "text",
    [
        f"# escape=b{' ' * 200_000}c\nRUN a",
        "ARG \\\n" + "? \\\n" * 60_000,
        "ENV A=1 " + "B " * 29_000,
        "? \n" * 60_000,
        "USER a\n" * 30_000,
    ],
)
def test_no_text_takes_longer_than_its_length(text: str) -> None:
    """Eight times the text takes eight times the time, and not 64 times."""
    problems = check(parse(text))
    assert 1 <= len(problems) <= MOST_PROBLEMS
    assert cpu_seconds(text) < 32 * max(cpu_seconds(text[: len(text) // 8]), 0.05)


def cpu_seconds(text: str) -> float:
    gc.collect()
    gc.disable()  # it takes the longer the more other tests have left
    try:
        before = time.process_time()
        check(parse(text))
        return time.process_time() - before
    finally:
        gc.enable()
