"""Paths as clients send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInput
from storage.tree import normalize


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"),
        ("", "/"),
        (".", "/"),
        ("//a///b/", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("..", "/"),
        ("/a/...", "/a/..."),
        ("/数据/e\u0301", "/数据/e\u0301"),
    ],
)
def test_paths_become_absolute_and_clean(path: str, clean: str) -> None:
    assert normalize(path) == clean


def test_relative_paths_start_at_their_base() -> None:
    assert normalize("x/../y", base="/datasets/d") == "/datasets/d/y"
    assert normalize("../../../y", base="/datasets/d") == "/y"


@pytest.mark.parametrize("path", ["/a\n", "/\x1b[31m", "/a\0b", "/\x7f", "/" + "x" * 256, "/" + "ab/" * 400])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(BadInput):
        normalize(path)


@given(st.text(alphabet=st.sampled_from("ab./ é"), max_size=40))
def test_no_path_climbs_out(path: str) -> None:
    clean = normalize(path)
    assert clean.startswith("/")
    assert not {"", ".", ".."} & set(clean.split("/")[1:] if clean != "/" else [])
    assert normalize(clean) == clean
