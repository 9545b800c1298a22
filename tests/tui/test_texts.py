"""The catalogues are complete, in step with the source, and their places are the same in every language."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import BadInput
from tests.tui.catalogue import MO, compiled, of_po, of_source
from tui.texts import Texts, translator
from tui.texts.formats import age_words, date_words, parse_cpus, parse_size, size_words
from tui.texts.sentences import PATTERNS, in_language

ROOT = Path(__file__).parents[2]


def ids(catalogue: object) -> set[str]:
    return {message.id[0] if isinstance(message.id, tuple) else message.id for message in catalogue} - {""}  # type: ignore[attr-defined]


def test_chinese_has_every_message_of_the_source_and_no_other() -> None:
    assert ids(of_source()) == ids(of_po()), "run: python -m tests.tui.catalogue, then translate"


def test_every_message_is_translated_with_the_same_places() -> None:
    for message in of_po():
        if not message.id:
            continue
        sources = message.id if isinstance(message.id, tuple) else (message.id,)
        for translated in message.string if isinstance(message.string, tuple) else (message.string,):
            assert translated, message.id
            places = set(re.findall(r"\{(\w+)\}", translated))
            assert places == set(re.findall(r"\{(\w+)\}", sources[-1])), message.id
            assert not message.fuzzy


def test_no_translation_has_characters_of_uncertain_width() -> None:
    for message in of_po():
        strings = message.string if isinstance(message.string, tuple) else (message.string,)
        assert not re.search("[“”‘’…—·]", "".join(strings)), message.id


def test_the_compiled_catalogue_is_in_step() -> None:
    assert MO.read_bytes() == compiled(of_po()), "run: python -m tests.tui.catalogue"


def test_every_pattern_is_a_sentence_that_some_use_case_says() -> None:
    known = set()
    for folder in ("storage", "backends", "tui/texts"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "sentences.py":
                known |= {_shape(node) for node in ast.walk(ast.parse(path.read_text())) if _is_text(node)}
    gone = [pattern for pattern in PATTERNS if re.sub(r"\{\w+\}", "{}", pattern) not in known]
    assert not gone


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _shape(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return str(getattr(node, "value", ""))


def test_sentences_are_translated_with_what_is_in_them() -> None:
    zh = translator("zh")
    assert in_language(zh, "there is no environment 'a{b}'") == "没有名为「a{b}」的环境"
    joined = "you have an environment 'x' already; cpus must be between 0 (the default) and 64"
    assert in_language(zh, joined) == "您已经有名为「x」的环境; CPU 数必须在 0（默认值）与 64 之间"
    assert in_language(zh, "'x' failed: the Docker engine does not answer") == "「x」失败：Docker 引擎没有响应"
    quota = "the workspace lab's quota of memory is 8GiB, with 6GiB in use, and this needs 3GiB"
    said = in_language(zh, f"{quota}: an administrator can raise it")
    assert said == "工作区 lab 的内存配额为 8GiB，已用 6GiB，此操作还需 3GiB：管理员可以提高配额"
    assert in_language(zh, "something new") == "something new"
    assert in_language(translator("en"), "there is no environment 'x'") == "there is no environment 'x'"


@pytest.mark.parametrize("language", ["zh", "zh_CN.UTF-8", "zh-Hans", "ZH"])
def test_every_way_to_say_chinese(language: str) -> None:
    assert translator(language).language == "zh"
    assert translator(language)("Help") == "帮助"


@pytest.mark.parametrize("language", ["", "en", "en_GB.UTF-8", "C", "POSIX", "de_DE", "../../etc", "zhx"])
def test_everything_else_is_english(language: str) -> None:
    texts = translator(language)
    assert texts.language == "en"
    assert texts.plural("{n} key", "{n} keys", 1) == "1 key"
    assert texts.plural("{n} key", "{n} keys", 0) == "0 keys"


def test_values_are_not_looked_at_for_places() -> None:
    assert translator("en")("Welcome, {name}.", name="{0}{x!r}") == "Welcome, {0}{x!r}."


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1024**2 - 1, "1.0 MiB"), (64 * 1024**3, "64 GiB"),
     (9912422, "9.5 MiB"), (2**60, "1024 PiB"), (150 * 1024, "150 KiB")],
)  # fmt: skip
def test_sizes(count: int, words: str) -> None:
    assert size_words(count) == words


def test_sizes_are_read_as_they_are_written() -> None:
    assert parse_size("") == 0
    assert parse_size(" 512MiB ") == 512 * 1024**2
    assert parse_size("16G") == parse_size("16 gb") == 16 * 1024**3
    assert parse_size("1.5k") == 1536
    for text in ("x", "-1", "1e3", "1ZiB", "99999999PiB", "\x1b[m", "1" * 400):
        with pytest.raises(BadInput):
            parse_size(text)


def test_cpus() -> None:
    assert (parse_cpus(""), parse_cpus("2"), parse_cpus("0.5")) == (0.0, 2.0, 0.5)
    for text in ("x", "-1", "nan", "inf", "1e9", "9" * 400):
        with pytest.raises(BadInput):
            parse_cpus(text)


@pytest.mark.parametrize(
    ("seconds", "en", "zh"),
    [(5, "5 s", "5 秒"), (300, "5 min", "5 分钟"), (7200, "2 h", "2 小时"), (12 * 86400, "12 d", "12 天"),
     (-9, "0 s", "0 秒")],
)  # fmt: skip
def test_ages(seconds: int, en: str, zh: str) -> None:
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    since = moment - timedelta(seconds=seconds)
    assert [age_words(_texts(code), since, moment) for code in ("en", "zh")] == [en, zh]


def _texts(language: str) -> Texts:
    return translator(language)


def test_dates() -> None:
    assert date_words(1_700_000_000) == "2023-11-14 22:13"
    assert date_words(0) == ""
    assert date_words(10**18) == "?"
