"""What the suites about upstreams share: one server before many upstreams, and no trace of a test after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.street import House, Street, check_whole, street
from sluice.testing.upstreams import blackhole, make_tls, refused_address, unresolvable_address

HOUSES = 80


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """Tags are asked about before they are served, and what failed is forgotten at once."""
    directory = tmp_path_factory.mktemp("town")
    trusted, foreign = (directory / name for name in ("trusted", "foreign"))
    for one in (trusted, foreign):
        one.mkdir(mode=0o700)
    tls = {"tls.test": make_tls(trusted), "foreign.test": make_tls(foreign)}
    with refused_address() as refused, blackhole() as hole:
        dead = {"refused.test": refused, "hole.test": hole, "nameless.test": unresolvable_address()}
        flags = ("--cache-tag-fresh-s", "0", "--cache-revalidate", "first", "--cache-negative-s", "0")
        with street(directory, HOUSES, *flags, tls=tls, dead=dead, ca=tls["tls.test"].ca) as made:
            yield made


@pytest.fixture
def house(town: Street) -> Iterator[House]:
    """An upstream of the test's own. Whatever it does, no spool is left, and what is visible is whole."""
    one = town.house()
    yield one
    check_whole(town.sluice)
    assert "Traceback" not in town.sluice.log.read_text("utf-8", "replace")
