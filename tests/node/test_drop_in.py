"""What containerd's files say beside the drop-in that ``prepare`` wrote as a copy of them."""

from __future__ import annotations

import pytest

from sluice.node.drop_in import Table, hidden_keys

PLUGIN = "images"


def file(**section: object) -> Table:
    return {"version": 2, "plugins": {PLUGIN: section}}


COPY = file(a=1, deep={"b": 2}, registry={"config_path": "/hosts"})


@pytest.mark.parametrize(
    ("others", "replaced", "merged"),
    [
        ([file(a=1, deep={"b": 2})], (), ()),
        ([file(a=1, deep={"b": 2}, registry={"config_path": "/other"})], (), ()),
        ([{"version": 2, "debug": {}}, file(a=1, deep={"b": 2})], (), ()),
        ([file(a=9, deep={"b": 2})], ("a",), ("a",)),
        ([file(a=1, deep={"b": 9})], ("deep.b",), ("deep.b",)),
        ([file(a=1, deep={"b": 2, "c": 3}, new=4)], ("deep.c", "new"), ()),
        ([file(a=1)], ("deep",), ("deep",)),
        ([file(a=1, deep={"b": 2}, registry={"headers": {}})], ("registry",), ()),
        ([{"version": 2}], ("a", "deep"), ("a", "deep")),
        ([file(a=1, more=5), file(a=1, deep={"b": 2})], (), ()),
    ],
)
def test_what_the_drop_in_hides(others: list[Table], replaced: tuple[str, ...], merged: tuple[str, ...]) -> None:
    """Where the drop-in's table replaces the others', every difference but config_path is without effect; where they
    are merged, what is only in another file counts."""
    found = [hidden_keys(COPY, others, PLUGIN, merges=merges) for merges in (False, True)]
    assert [replaced, merged] == found


def test_a_drop_in_for_another_plugin_hides_nothing() -> None:
    """After a migration to another version the table has another name; what is missing then is config_path."""
    assert () == hidden_keys(COPY, [file(a=9)], "another", merges=False)
