"""The catalogues are complete, in step with the source, and their places are the same in every language."""

from __future__ import annotations

import re
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from babel.messages.catalog import Catalog

from storage.errors import BadInput
from tests.tui.catalogue import MO, compiled, of_po, of_source
from tests.tui.spoken import sentences_of
from tui.texts import SAID, Texts, messages, translator
from tui.texts.formats import age_words, date_words, parse_cpus, parse_size, size_words
from tui.texts.sentences import in_language


def ids(catalogue: Catalog) -> set[tuple[str | None, str]]:
    found = {(message.context, message.id[0] if isinstance(message.id, tuple) else message.id) for message in catalogue}
    return found - {(None, "")}


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


def test_every_sentence_of_the_use_cases_is_recognised() -> None:
    """Also where another one has nearly the same shape."""
    chinese = translator("zh")
    for sentence in messages("zh", SAID):
        values = {name: f"x{at}" for at, name in enumerate(re.findall(r"\{(\w+)\}", sentence))}
        assert in_language(chinese, sentence.format(**values)) == chinese.said(sentence, **values)


def test_a_sentence_that_somebody_adds_to_a_use_case_is_found() -> None:
    """All of it must be in the catalogue, or Chinese people would read English: see `spoken`."""
    source = """
        '''There is no docstring here for people.'''
        REASON = "the cable is not there"
        def act(name, error):
            log.warning("somebody did this: %s", name)
            asyncio.create_task(run(), name="run for somebody")
            if name:
                raise Unavailable(f"{name}: {error.message}; " f"'{printable(name)}' went")
            raise ValueError("this is for programmers")
    """
    assert sentences_of(textwrap.dedent(source)) == ["the cable is not there", "{name}: {reason}; '{name_2}' went"]


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
    lacks = "GPUs 'h100': 0 of 1 left, 1 needed, held by bob's 'x' until that stops"
    hosts = in_language(zh, f"no available host (a: in maintenance, cards; b: {lacks})")
    lacking = "GPU「h100」：共 1 个，剩余 0 个，需要 1 个，占用者 bob 的「x」，需等其停止"
    assert hosts == f"没有可用的主机（a: 维护中，cards; b: {lacking}）"


def test_names_in_sentences_stay_names() -> None:
    """An environment may be called like a word of the menu."""
    assert in_language(translator("zh"), "there is no environment 'running'") == "没有名为「running」的环境"
    assert in_language(translator("zh"), "'memory' failed: it ran out of memory") == "「memory」失败：内存耗尽"
    assert in_language(translator("zh"), "memory: starting") == "memory: 启动中"


def test_warnings_of_terminals_are_in_chinese() -> None:
    zh = translator("zh")
    sleeps = "ashore: desk sleeps in 12 s, at 11:37 UTC. Any sign of life keeps it awake."
    assert in_language(zh, sleeps) == "ashore: desk 将在 12 秒后（11:37 UTC）休眠。任何活动都会让它保持运行。"
    assert in_language(zh, "x is deleted in 5 min, at 11:37 UTC.") == "x 将在 5 分钟后（11:37 UTC）被删除。"


def test_a_sentence_made_to_keep_the_menu_busy_is_given_up_soon() -> None:
    """Places may hold what others chose: neither endless recursion nor trying again at each place."""
    for evil in ("; " * 499, "a: " * 330, "' has '" * 140, "GPUs: 0 of 1 left, 1 needed, held by " * 26):
        in_language(translator("zh"), evil)
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
