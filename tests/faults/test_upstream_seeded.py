"""The suites about upstream faults against a cache with a defect: they would notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from faults import street as streets
from faults import test_upstream_faults as faults
from faults.seeded import SeededServer
from faults.street import House, Street, check_whole, street

Suite = Callable[[Street, House], None]


def wrong_at_the_end(town: Street, house: House) -> None:
    faults.test_what_ends_short(town, house, "wrong at the end")


def wrong_and_small(_: Street, house: House) -> None:
    faults.test_a_small_blob_is_verified_before_its_head(house, "bytes")


def broken_off(town: Street, house: House) -> None:
    faults.test_what_ends_short(town, house, "cut, and never resumes")
    check_whole(town.sluice)


@pytest.mark.parametrize(
    ("defect", "suite"),
    [
        ("unverified-fills", wrong_at_the_end),
        ("unverified-fills", wrong_and_small),
        ("nothing-withheld", wrong_at_the_end),
        ("spools-stay", broken_off),
    ],
)
def test_the_fault_suites_find_a_seeded_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str, suite: Suite
) -> None:
    """What passes before a cache as it is fails before one that skips a check or leaves something behind."""
    monkeypatch.setattr(streets, "PATIENCE_S", 3.0)
    with street(tmp_path, 1, make=partial(SeededServer, defect=defect)) as town, pytest.raises(AssertionError):
        suite(town, town.house())
