"""Which upstream a request means: names in paths and in containerd's namespace."""

from __future__ import annotations

import pytest

from sluice.errors import NameInvalid
from sluice.oci.reference import NAME_LENGTH_MAX, Repository
from sluice.server.namespaces import Names

NAMES = Names(["docker.io", "quay.io", "r.test:5000"])


@pytest.mark.parametrize(
    ("path", "namespace", "place"),
    [
        ("team/app", None, "team/app"),
        ("team/app", "", "team/app"),
        ("team/app", "elsewhere.test", "team/app"),
        ("team/app", "quay.io", "quay.io/team/app"),
        ("team/app", "QUAY.IO", "quay.io/team/app"),
        ("app", "quay.io", "quay.io/app"),
        ("app", "docker.io", "docker.io/library/app"),
        ("team/app", "docker.io", "docker.io/team/app"),
        ("docker.io/app", None, "docker.io/library/app"),
        ("docker.io/library/app", None, "docker.io/library/app"),
        ("docker.io/team/app", "docker.io", "docker.io/team/app"),
        ("quay.io/team/app", "docker.io", "quay.io/team/app"),
        ("team/app", "r.test:5000", "r.test_5000/team/app"),
        ("r.test_5000/team/app", None, "r.test_5000/team/app"),
        ("r.test/team/app", None, "r.test/team/app"),
        ("docker.io", None, "docker.io"),
        ("docker.io", "docker.io", "docker.io/library/docker.io"),
    ],
)
def test_where_a_request_leads(path: str, namespace: str | None, place: str) -> None:
    """A name in the path wins over the namespace, and what neither names is the default upstream's."""
    assert place == NAMES.locate(Repository(path), namespace)


def test_a_place_is_a_fixed_point() -> None:
    """The name of what is held leads to itself."""
    for place in ("docker.io/library/app", "quay.io/app", "r.test_5000/team/app", "team/app"):
        assert place == NAMES.locate(Repository(place), None)


def test_a_name_that_becomes_too_long_is_refused() -> None:
    """The limit holds for the whole name."""
    with pytest.raises(NameInvalid):
        NAMES.locate(Repository("a" * NAME_LENGTH_MAX), "quay.io")
