"""What all suites share: the long form is for ``--long``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long something takes on a machine that is busy is no property of the code.
settings.register_profile("sluice", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sluice")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of the suites too: minutes, not seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="the long form of a suite; run with --long"))


@pytest.fixture
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether ``--long`` was given, for suites that only differ in how much they try."""
    return bool(request.config.getoption("--long"))
