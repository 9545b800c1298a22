"""What a Dockerfile may say here. Every refusal has a place and a sentence; all of them are found at once.

The platform owns what these instructions would decide: the base (FROM), how an environment is entered (CMD,
ENTRYPOINT, USER) and how it is reached (EXPOSE). There is no build context, so whatever would take files from one
cannot work, and is refused before anything runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from backends.dockerfiles.reading import MOST_PROBLEMS
from backends.dockerfiles.source import Dockerfile, Heredoc, Instruction, Problem, Word
from backends.dockerfiles.words import split_words
from storage.names import printable

OUR_LABEL = "ashore"
"""Labels of this name, and of names that begin with it and a dot, are how Ashore finds what it made."""
_FORBIDDEN = {
    "FROM": "FROM is not allowed: the base is chosen with --base, and is put in front",
    "EXPOSE": "EXPOSE is not allowed: ports are reached through ssh -L, none needs to be named",
    "CMD": "CMD is not allowed: an environment starts what Ashore needs in it",
    "ENTRYPOINT": "ENTRYPOINT is not allowed: an environment starts what Ashore needs in it",
    "USER": "USER is not allowed: who logs in is decided when an environment is made",
    "ONBUILD": "ONBUILD is not allowed: what it says would run in somebody else's build",
}
_FLAGS: Mapping[str, frozenset[str]] = {
    "COPY": frozenset({"chown"}),
    "ADD": frozenset({"chown"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "retries"}),
}
_REFUSED_FLAGS = {
    ("RUN", "mount"): "RUN --mount is not offered: leave it out; what has not changed is taken from the cache anyway",
    ("RUN", "network"): "RUN --network is not offered: every step has the network of the builder",
    ("RUN", "security"): "RUN --security is not offered: no step may have more rights than others",
    ("RUN", "device"): "RUN --device is not offered: there are no devices in a build",
    ("COPY", "from"): "COPY --from is not allowed: there are no other stages, and no other images than the base",
    ("COPY", "chmod"): "COPY --chmod is not offered: write RUN chmod in the next line",
    ("ADD", "chmod"): "ADD --chmod is not offered: write RUN chmod in the next line",
}
_URL = re.compile(r"(?i)^['\"]?([a-z][a-z0-9+.-]*://|git@|[a-z0-9_.-]+@[a-z0-9.-]+:|github\.com/)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_OWNER = re.compile(r"[A-Za-z0-9_.:${}-]+")
_DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+|0")


def check(found: Dockerfile) -> Sequence[Problem]:
    """The reasons why this cannot be built here, in the order of the text; empty: it can be tried.

    Of more than `MOST_PROBLEMS` some are left out.
    """
    ruled = (problem for one in found.instructions for problem in _check(one, found.escape))
    return sorted({*found.problems, *islice(ruled, MOST_PROBLEMS)})[:MOST_PROBLEMS]


def _check(one: Instruction, escape: str) -> Iterator[Problem]:
    if one.keyword in _FORBIDDEN:
        yield one.problem(_FORBIDDEN[one.keyword])
        return
    rule = _RULES.get(one.keyword)
    if rule is None:
        yield one.problem(_unknown(one.keyword))
        return
    yield from _check_flags(one)
    if not one.rest.value:
        yield one.problem(f"{one.keyword} needs an argument")
        return
    yield from rule(one, escape)


def _unknown(keyword: str) -> str:
    word = printable(keyword, limit=40)
    if close := difflib.get_close_matches(keyword, _RULES, n=1):
        return f"there is no instruction '{word}' (did you mean {close[0]}?)"
    return f"there is no instruction '{word}'"


def _check_flags(one: Instruction) -> Iterator[Problem]:
    seen: set[str] = set()
    for flag in one.flags:
        name, _, value = flag.value[2:].partition("=")
        if flag.value == "--":
            yield one.problem("a bare -- is not allowed: what stands behind it could be taken for flags", flag.offset)
        elif (sentence := _REFUSED_FLAGS.get((one.keyword, name))) is not None:
            yield one.problem(sentence, flag.offset)
        elif name not in _FLAGS.get(one.keyword, ()):
            yield one.problem(f"{one.keyword} has no flag --{printable(name, limit=40)} here", flag.offset)
        elif not value:
            yield one.problem(f"--{name} needs a value: write --{name}=...", flag.offset)
        elif name in seen:
            yield one.problem(f"--{name} is there twice", flag.offset)
        elif not _is_right(name, value):
            yield one.problem(f"--{name} cannot be '{printable(value, limit=40)}'", flag.offset)
        seen.add(name)


def _is_right(name: str, value: str) -> bool:
    if name == "chown":
        return _OWNER.fullmatch(value) is not None
    return value.isascii() and value.isdigit() if name == "retries" else _DURATION.fullmatch(value) is not None


# ---- one rule for each instruction -------------------------------------------------------------------------------
def _anything(one: Instruction, escape: str) -> Iterator[Problem]:
    return iter(())


def _run(one: Instruction, escape: str) -> Iterator[Problem]:
    if one.words is not None and not any(one.words):
        yield one.problem("RUN needs a command", one.rest.offset)
    if one.words is None and one.rest.value.startswith("--"):
        yield one.problem("a command may not begin with --: it would be taken for a flag", one.rest.offset)


def _copy(one: Instruction, escape: str) -> Iterator[Problem]:
    """Of files, only heredocs: there are no others. What looks like an address is told from what looks like a file."""
    sources, target = _sources(one)
    at = {heredoc.offset: heredoc for heredoc in one.heredocs}
    for source in sources:
        if source.offset in at:
            yield from _copied(one, at[source.offset])
        elif one.keyword == "ADD" and _URL.match(source.value):
            yield one.problem("ADD of an address is not allowed: fetch it with RUN curl or RUN git", source.offset)
        elif one.keyword == "ADD" and "$" in source.value:
            yield one.problem("ADD of a variable is not allowed: it could be an address", source.offset)
        else:
            yield one.problem(
                f"there is no file for {one.keyword}: a build has this text only, so write the file here as a heredoc"
                f" ({one.keyword} <<'EOF' /path)",
                source.offset,
            )
    if not sources:
        yield one.problem(f"{one.keyword} needs a source and a target")
    elif len(sources) > 1 and target is not None and not target.value.rstrip("'\"").endswith("/"):
        yield one.problem("with several sources, the target must be a folder and end with /", target.offset)


def _copied(one: Instruction, heredoc: Heredoc) -> Iterator[Problem]:
    if heredoc.expand and "$" in heredoc.content:
        yield one.problem(
            f"variables in a document are not replaced here: write <<'{printable(heredoc.name, limit=40)}' in quotes"
            " if it is meant as it stands",
            heredoc.offset,
        )
    if not _FILE.fullmatch(heredoc.name):
        yield one.problem("this document becomes a file: its name may have letters, digits, . _ - only", heredoc.offset)


def _sources(one: Instruction) -> tuple[Sequence[Word], Word | None]:
    if one.words is not None:
        words: Sequence[Word] = [Word(word, one.rest.offset) for word in one.words]
    else:
        words = [Word(match[0], match.start()) for match in _words_from(one)]
    return words[:-1], words[-1] if words else None


def _words_from(one: Instruction) -> Iterator[re.Match[str]]:
    return re.compile(r"[^\t ]+").finditer(one.text.value.rstrip(), one.rest.offset)


def _pairs(one: Instruction, escape: str) -> Iterator[Problem]:
    """ENV and LABEL: NAME=VALUE …, or the old NAME VALUE."""
    words, opened = split_words(one.text.value, one.rest.offset, escape)
    if opened is not None:
        yield one.problem("this quote has no end", opened)
        return
    if "=" not in words[0].value:
        if len(words) < 2:
            yield one.problem(f"{one.keyword} needs a name and a value: {one.keyword} NAME=VALUE", one.rest.offset)
        words = words[:1]
    for word in words:
        name, equals, _ = word.value.partition("=")
        if not name.strip("'\""):
            yield one.problem("there is no name in front of =", word.offset)
        elif not equals and len(words) > 1:
            yield one.problem(f"'{printable(name, limit=60)}' has no value: write NAME=VALUE", word.offset)
        elif one.keyword == "LABEL" and _may_be_ours(name, escape):
            yield one.problem("labels that begin with 'ashore' are Ashore's own", word.offset)


def _may_be_ours(name: str, escape: str) -> bool:
    """Quotes and escapes are no way around it, and what a variable holds is not known before the build."""
    plain = re.sub(rf"['\"{re.escape(escape)}]", "", name).lower()
    return "$" in plain or plain == OUR_LABEL or plain.startswith(f"{OUR_LABEL}.")


def _arguments(one: Instruction, escape: str) -> Iterator[Problem]:
    words, opened = split_words(one.text.value, one.rest.offset, escape)
    if opened is not None:
        yield one.problem("this quote has no end", opened)
    for word in words:
        if not _NAME.fullmatch(word.value.partition("=")[0]):
            yield one.problem(f"'{printable(word.value, limit=60)}' is no NAME or NAME=VALUE", word.offset)


def _shell(one: Instruction, escape: str) -> Iterator[Problem]:
    if not one.words:
        yield one.problem('SHELL needs its words in brackets: SHELL ["/bin/bash", "-c"]', one.rest.offset)


def _health(one: Instruction, escape: str) -> Iterator[Problem]:
    kind, _, command = one.rest.value.partition(" ")
    if kind.upper() == "NONE" and not command.strip():
        return
    if kind.upper() != "CMD" or not command.strip():
        yield one.problem("HEALTHCHECK is followed by NONE, or by CMD and a command", one.rest.offset)


def _volume(one: Instruction, escape: str) -> Iterator[Problem]:
    if one.words is not None and not (one.words and all(word.strip() for word in one.words)):
        yield one.problem("VOLUME needs paths", one.rest.offset)


_RULES: Mapping[str, Callable[[Instruction, str], Iterator[Problem]]] = {
    "ADD": _copy,
    "ARG": _arguments,
    "COPY": _copy,
    "ENV": _pairs,
    "HEALTHCHECK": _health,
    "LABEL": _pairs,
    "MAINTAINER": _anything,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _anything,
    "VOLUME": _volume,
    "WORKDIR": _anything,
}
