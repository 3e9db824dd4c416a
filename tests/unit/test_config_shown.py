"""How a refused value is quoted: short, and in little time, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.config.shown import SHOWN_LENGTH_MAX, shown

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def wide(depth: int) -> object:
    """The same list nine times in a list, again and again: 9 to this power in all."""
    value: object = "x"
    for _ in range(depth):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ([1, "a", None], "[1, 'a', None]"),
        ({"a": 1, "b": [2]}, "{'a': …, 'b': …}"),
        ([], "[]"),
        ({}, "{}"),
        (nested(4), "[[[[1]]]]"),
        (nested(5000), "[[[[[…]]]]]"),
        ("https://user:password@host/", "'https://…@host/'"),
        ("-----BEGIN PRIVATE KEY-----", "'-----BEGIN …'"),
        ("x" * 500, "'" + "x" * 159 + "…"),
        (["x" * 500], "['" + "x" * 158 + "…"),
        ([7] * 10**6, ("[" + "7, " * 60)[:SHOWN_LENGTH_MAX] + "…"),
    ],
)
def test_values(value: object, quoted: str) -> None:
    """Mappings by their keys, lists by what is in them, to a certain depth and length."""
    assert quoted == shown(value)


def test_a_value_that_repeats_itself_costs_nothing() -> None:
    """However often it is there: only what is shown is looked at."""
    assert "[[[[[…], […], […], […], […], […], […], […], […]], " in shown(wide(60))


def test_a_value_within_itself_has_an_end() -> None:
    """A list that is its own member is shown to the same depth as any other."""
    value: list[object] = []
    value.append(value)
    assert "[[[[[…]]]]]" == shown(value)


@given(VALUES)
def test_any_value_is_one_short_line(value: object) -> None:
    """Never longer than it may be, never more than a line, always text that may be printed."""
    line = shown(value)
    assert (1, True) == (len(line.splitlines()), len(line) <= SHOWN_LENGTH_MAX + 1)
