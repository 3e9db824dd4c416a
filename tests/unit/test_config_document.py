"""What is said about a broken document: the problem and its place, and nothing of its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.config.document import parse_either, parse_yaml

SECRET = "hunter2"
LATER = "a value is not what it looks like or is marked as: put it in quotes (line 1, column 11)"
BOMB = "\n".join(
    ["a0: &a0 [hunter2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 12)}]" for n in range(1, 9)), "password: *a8"]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user: bob\npassword: hunter2: secret", "mapping values are not allowed here (line 2, column 18)"),
        ("password: [hunter2", "expected ',' or ']', but got '<stream end>' (line 2, column 1)"),
        ("password:\n\t- hunter2", "found character '\\t' that cannot start any token (line 2, column 1)"),
        ("key: |\n  -----BEGIN\nhunter2", "could not find expected ':' (line 4, column 1)"),
        ("password: *hunter2", "found undefined alias … (line 1, column 11)"),
        ("password: !hunter2 x", "could not determine a constructor for the tag … (line 1, column 11)"),
        ("password: !hunter2'x y", "could not determine a constructor for the tag … (line 1, column 11)"),
        ("password: @hunter2", "found character … that cannot start any token (line 1, column 11)"),
        ('password: "\\hunter2"', "found unknown escape character … (line 1, column 13)"),
        ("password: !!bool hunter2", LATER),
        ("password: !!int ''", LATER),
        ("password: !!timestamp hunter2", LATER),
        ("password: 2026-13-45", LATER),
        ("hunter2: 1\nhunter2: 2", "a key is given twice (line 2, column 1)"),
        ("[" * 5000, "it is nested too deeply"),
        ("a: &a [hunter2, *a]", "a value contains itself (line 1, column 4)"),
        ("a: &a {hunter2: {b: *a}}", "a value contains itself (line 1, column 4)"),
        (BOMB, "it has more than 1048576 values (line 7, column 5)"),
        ("password: hunter2\0", "it holds what is no text: special characters are not allowed (position 17)"),
    ],
)
def test_a_problem_is_told_by_its_place(text: str, said: str) -> None:
    """Line and column where there are any; the words around them are the parser's own."""
    with pytest.raises(ValueError, match=r"^") as caught:
        parse_either(text.encode() + b"\n")
    assert said == str(caught.value)
    assert SECRET not in said


@given(st.text(st.sampled_from("'\"!&*|>%@`[]{},:?-#\\\t\n <=~0.x"), max_size=12))
def test_a_secret_never_gets_into_a_reason(around: str) -> None:
    """Whatever stands around it, a document is read or refused without showing what is in it."""
    for text in (f"a: {around}{SECRET}", f"a: {SECRET}{around}", f"{around}{SECRET}{around}: b"):
        try:
            parse_yaml(text.encode())
        except ValueError as error:
            assert SECRET not in str(error)  # noqa: PT017 - most documents are read, and there is nothing to look at


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "a": 2}', "a key is given twice (line 2, column 2)"),
        ('{"b": {"a": 1, "c": [], "a": 2}}', "a key is given twice (line 1, column 25)"),
        ('[{"a": 1, "\\u0061": 2}]', "a key is given twice (line 1, column 11)"),
        ('{"\\ud83d\\ude00": 1, "\U0001f600": 2}', "a key is given twice"),
    ],
)
def test_a_key_given_twice_is_refused_in_json_too(text: str, said: str) -> None:
    """However it is escaped; the last one would win in silence."""
    with pytest.raises(ValueError, match=r"^") as caught:
        parse_either(text.encode())
    assert said == str(caught.value)


def test_aliases_are_read() -> None:
    """As long as they do not stand for too much, what they name may be there as often as one likes."""
    assert {"a": [1], "b": [[1], [1]], "c": {"d": 1, "e": 2}} == parse_yaml(
        b"a: &a [1]\nb: [*a, *a]\nc: {<<: &c {d: 1}, e: 2}\n"
    )


def test_json_is_read_as_json() -> None:
    """A surrogate pair is one character, and the same key may stand in two objects."""
    assert {"a": {"a": "\U0001f600"}} == parse_either(b'{"a": {"a": "\\ud83d\\ude00"}}')
