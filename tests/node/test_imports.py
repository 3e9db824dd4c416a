"""An entry in the ``imports`` of somebody else's TOML file: put in, and out again, with everything else untouched."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.node.imports import CannotChange, put_in, take_out

MAIN, TARGET, ENTRY = (
    "/etc/containerd/config.toml",
    "/etc/containerd/conf.d/99-sluice.toml",
    "/etc/containerd/conf.d/*.toml",
)
HEADS = (
    "",
    "version = 2\n",
    "# mine\nversion = 2 # two\n\n",
    'imports = ["/a/*.toml"] # mine\nversion = 2\n',
    'version = 2\nimports = [ "/a/*.toml", ]\n',
    "version = 2\nimports=[]\n",
    "version = 2",
)
TAILS = ("", "[debug]\nlevel = 'info'\n", '[plugins]\n  [plugins."a.b"]\n    x = """\nimports = []\n"""\n')


def texts() -> st.SearchStrategy[str]:
    joined = st.tuples(st.sampled_from(HEADS), st.sampled_from(TAILS)).map(
        lambda pair: pair[0] + ("\n" if pair[1] and not pair[0].endswith("\n") else "") + pair[1]
    )
    return st.tuples(joined, st.booleans()).map(lambda pair: pair[0].replace("\n", "\r\n") if pair[1] else pair[0])


@settings(max_examples=200, deadline=None)
@given(texts(), st.sampled_from(["", "# later\n", "[metrics]\naddress = '1'\n"]))
def test_what_is_put_in_comes_out_again(before: str, later: str) -> None:
    """For any file, edited at its end since or not: only the entry was added, and without it the file is as it was."""
    text, edit = put_in(before, ENTRY, TARGET)
    table = tomllib.loads(before)
    assert {**table, "imports": [*table.get("imports", []), ENTRY]} == tomllib.loads(text)
    joint = "" if text.endswith("\n") else "\n"
    out = take_out(f"{text}{joint}{later}".encode(), edit, MAIN).decode()
    # A last line without an end got one when ours came after it.
    assert out in {f"{before}{joint}{later}", f"{before}{'' if before.endswith(chr(10)) else chr(10)}{later}"}


@pytest.mark.parametrize(
    ("edited", "left"),
    [
        (f'imports = ["{ENTRY}", "/mine.toml"]\n', 'imports = ["/mine.toml"]\n'),
        (f"imports = [ '/mine.toml' , '{ENTRY}' ] # x\n", "imports = [ '/mine.toml' ] # x\n"),
        (f'imports = ["{ENTRY}"] # mine\n', "imports = [] # mine\n"),
        (f'imports = [\n  "/a.toml", # a\n  "{ENTRY}",\n]\n', 'imports = [\n  "/a.toml", # a\n]\n'),
        (f'imports = [\n  "/a.toml",\n  "{ENTRY}" # b\n]\n', 'imports = [\n  "/a.toml",\n   # b\n]\n'),
        (f'# "{ENTRY}",\nimports = ["{ENTRY}", "/b"]\n', f'# "{ENTRY}",\nimports = ["/b"]\n'),
        (f'imports = ["{ENTRY}"]\nx = """\nimports = ["{ENTRY}"]\n"""\n', f'x = """\nimports = ["{ENTRY}"]\n"""\n'),
        ("# all gone\n", "# all gone\n"),
        ("not toml, and not ours", "not toml, and not ours"),
        ('imports = ["/mine/*.toml"]\n', 'imports = ["/mine/*.toml"]\n'),
    ],
)
def test_the_entry_alone_leaves_what_was_edited(edited: str, left: str) -> None:
    """Wherever its owner has moved the entry: it goes with its comma, and every other byte stays."""
    _, edit = put_in("version = 2\n", ENTRY, TARGET)
    assert left == take_out(edited.encode(), edit, MAIN).decode()


@pytest.mark.parametrize(
    ("edited", "remedy"),
    [
        (f'version = 2\nimports = ["{TARGET}"]\n', f'remove "{TARGET}" from line 2 (imports = ["{TARGET}"]) by hand'),
        ('imports = ["conf.d/99-sluice.toml"]\n', 'remove "conf.d/99-sluice.toml" from line 1'),
        (f'imports = ["{ENTRY}"]\nversion = \n', f'remove "{ENTRY}" from line 1'),
        ('\nimports = ["/etc/containerd/conf.d/\\u002A.toml"]\n', f'remove "{ENTRY}" from line 2'),
    ],
)
def test_what_cannot_be_taken_out_alone_is_named(edited: str, remedy: str) -> None:
    """A name of the drop-in itself, which containerd would miss, a broken file, an entry in other letters: the line
    that is to be removed is said."""
    _, edit = put_in("version = 2\n", ENTRY, TARGET)
    with pytest.raises(CannotChange) as caught:
        take_out(edited.encode(), edit, MAIN)
    assert remedy in str(caught.value)
