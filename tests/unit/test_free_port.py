"""The ports that tests start servers on."""

from __future__ import annotations

from sluice.testing import server
from sluice.testing.server import PORTS, free_port

MANY = 1000


def test_no_port_is_given_twice() -> None:
    """Who asks for two has two, however many were asked for before."""
    assert MANY == len({free_port() for _ in range(MANY)})


def test_ports_do_not_run_out() -> None:
    """Where half of them have been given, they are given again."""
    server._given.update(PORTS)
    assert free_port() in PORTS
