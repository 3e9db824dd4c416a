"""Paths: every endpoint is found from its end, and nothing but plain names passes."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import (
    DigestInvalid,
    ManifestUnknown,
    MethodNotAllowed,
    NameInvalid,
    RouteUnknown,
    SluiceError,
    UploadUnknown,
)
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.wire.route import ALLOWED, PATH_LENGTH_MAX, Kind, Route, check_method, parse_route

DIGEST = Digest("sha256", "a" * 64)
LONG = Digest("sha512", "b" * 128)
SESSION = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2", Route(Kind.BASE)),
        ("/v2/", Route(Kind.BASE)),
        ("/v2/_catalog", Route(Kind.CATALOG)),
        ("/token", Route(Kind.TOKEN)),
        ("/v2/team/app/tags/list", Route(Kind.TAGS, Repository("team/app"))),
        ("/v2/app/manifests/v1.0", Route(Kind.MANIFEST, Repository("app"), Tag("v1.0"))),
        (f"/v2/app/manifests/{DIGEST}", Route(Kind.MANIFEST, Repository("app"), DIGEST)),
        (f"/v2/app/blobs/{LONG}", Route(Kind.BLOB, Repository("app"), LONG)),
        (f"/v2/app/referrers/{DIGEST}", Route(Kind.REFERRERS, Repository("app"), DIGEST)),
        ("/v2/app/blobs/uploads/", Route(Kind.UPLOADS, Repository("app"))),
        ("/v2/app/blobs/uploads", Route(Kind.UPLOADS, Repository("app"))),
        (f"/v2/app/blobs/uploads/{SESSION}", Route(Kind.UPLOAD, Repository("app"), session=SESSION)),
        ("/v2/a%2Fb/manifests/%76%31", Route(Kind.MANIFEST, Repository("a/b"), Tag("v1"))),
        ("/v2/app/blobs/sha256%3a" + "a" * 64, Route(Kind.BLOB, Repository("app"), DIGEST)),
        ("/v2/blobs/uploads/tags/list", Route(Kind.TAGS, Repository("blobs/uploads"))),
        ("/v2/a/blobs/uploads/manifests/list", Route(Kind.MANIFEST, Repository("a/blobs/uploads"), Tag("list"))),
        ("/v2/manifests/blobs/uploads/", Route(Kind.UPLOADS, Repository("manifests"))),
        ("/v2/tags/list/tags/list", Route(Kind.TAGS, Repository("tags/list"))),
        ("/v2/v2/manifests/manifests", Route(Kind.MANIFEST, Repository("v2"), Tag("manifests"))),
        (f"/v2/blobs/uploads/blobs/{DIGEST}", Route(Kind.BLOB, Repository("blobs/uploads"), DIGEST)),
        (f"/v2/x/blobs/blobs/uploads/{SESSION}", Route(Kind.UPLOAD, Repository("x/blobs"), session=SESSION)),
    ],
)
def test_every_endpoint_is_found(path: str, route: Route) -> None:
    """Names may hold the endpoints' words, and %2F is a slash like any other."""
    assert route == parse_route(path.encode())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"", RouteUnknown),
        (b"/", RouteUnknown),
        (b"/v1/", RouteUnknown),
        (b"/v2x", RouteUnknown),
        (b"//v2/", RouteUnknown),
        (b"/token/", RouteUnknown),
        (b"/\xff", RouteUnknown),
        (b"/%", RouteUnknown),
        (b"/\x00", RouteUnknown),
        (b"v2/app/tags/list", RouteUnknown),
        (b"/v2/app", RouteUnknown),
        (b"/v2/app/tags", RouteUnknown),
        (b"/v2/app/layers/x", RouteUnknown),
        (b"/v2/_catalog/", NameInvalid),
        (b"/v2//", NameInvalid),
        (b"/v2/app//tags/list", NameInvalid),
        (b"/v2/app/blobs/uploads//", NameInvalid),
        (b"/v2/app/manifests/", NameInvalid),
        (b"/v2/app/../b/tags/list", NameInvalid),
        (b"/v2/app/%2e%2E/b/tags/list", NameInvalid),
        (b"/v2/./tags/list", NameInvalid),
        (b"/v2/app/manifests/..", NameInvalid),
        (b"/v2/app%2f/tags/list", NameInvalid),
        (b"/v2/App/tags/list", NameInvalid),
        (b"/v2/tags/list", NameInvalid),
        (b"/v2/manifests/v1", NameInvalid),
        (b"/v2/" + b"a" * 256 + b"/tags/list", NameInvalid),
        (b"/v2/a%zz/tags/list", NameInvalid),
        (b"/v2/a%2", NameInvalid),
        (b"/v2/a%252Fb/tags/list", NameInvalid),
        (b"/v2/a%ff/tags/list", NameInvalid),
        (b"/v2/a%C0%AFb/tags/list", NameInvalid),
        (b"/v2/a%ef%bf%bd/tags/list", NameInvalid),
        (b"/v2/a%00/tags/list", NameInvalid),
        (b"/v2/a%0d%0aX:%20y/tags/list", NameInvalid),
        (b"/v2/a%c2%85/tags/list", NameInvalid),
        (b"/%76%32/a%ff/tags/list", NameInvalid),
        (b"/v2/" + b"a" * PATH_LENGTH_MAX, NameInvalid),
        (b"/v2/app/blobs/sha256:abc", DigestInvalid),
        (b"/v2/app/blobs/x", DigestInvalid),
        (b"/v2/app/referrers/v1", DigestInvalid),
        (b"/v2/app/manifests/sha256:abc", DigestInvalid),
        (b"/v2/app/manifests/.INVALID_MANIFEST_NAME", ManifestUnknown),
        (b"/v2/app/manifests/" + b"a" * 129, ManifestUnknown),
        (b"/v2/app/blobs/uploads/x", UploadUnknown),
        (b"/v2/app/blobs/uploads/" + SESSION.upper().encode(), UploadUnknown),
        (b"/v2/app/blobs/uploads/" + SESSION.encode() + b"0", UploadUnknown),
    ],
)
def test_what_is_no_plain_path_is_refused(path: bytes, error: type[SluiceError]) -> None:
    """Under /v2/ as a bad name, elsewhere as an unknown route; the type is exact."""
    with pytest.raises(error) as caught:
        parse_route(path)
    assert error is type(caught.value)


def test_a_tag_that_cannot_be_is_invalid_where_it_would_be_made() -> None:
    """Asking for it is a 404, as the conformance suite has it; PUT is told what is wrong with it."""
    with pytest.raises(NameInvalid):
        parse_route(b"/v2/app/manifests/-x", "PUT")
    with pytest.raises(ManifestUnknown):
        parse_route(b"/v2/app/manifests/-x", "DELETE")


def test_the_limit_counts_the_path_as_it_came() -> None:
    """PATH_LENGTH_MAX bytes are read, escapes and all; one more is not."""
    longest = b"/v2/" + b"a" * 255 + b"/manifests/" + b"%61" * 128
    assert Tag("a" * 128) == parse_route(longest).reference
    full = b"/v2/app/x".ljust(PATH_LENGTH_MAX, b"x")
    with pytest.raises(RouteUnknown):
        parse_route(full)
    with pytest.raises(NameInvalid):
        parse_route(full + b"x")


component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,2})[a-z0-9]{1,4}){0,2}", fullmatch=True)
words = st.sampled_from(["blobs", "uploads", "manifests", "tags", "list", "referrers", "v2", "token"])
repositories = st.lists(component | words, min_size=1, max_size=6).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True) | words
digests = st.sampled_from([DIGEST, LONG])


@given(repositories, tags | digests, digests, st.text("0123456789abcdef", min_size=32, max_size=32), st.booleans())
def test_what_is_written_is_what_is_parsed(
    name: str, reference: str | Digest, digest: Digest, session: str, escaped: bool
) -> None:
    """Every endpoint of every name comes back, however much of it is escaped."""
    routes = {
        f"/v2/{name}/tags/list": Route(Kind.TAGS, Repository(name)),
        f"/v2/{name}/manifests/{reference}": Route(
            Kind.MANIFEST, Repository(name), reference if isinstance(reference, Digest) else Tag(reference)
        ),
        f"/v2/{name}/blobs/{digest}": Route(Kind.BLOB, Repository(name), digest),
        f"/v2/{name}/referrers/{digest}": Route(Kind.REFERRERS, Repository(name), digest),
        f"/v2/{name}/blobs/uploads/": Route(Kind.UPLOADS, Repository(name)),
        f"/v2/{name}/blobs/uploads/{session}": Route(Kind.UPLOAD, Repository(name), session=session),
    }
    paths = [path.replace("/", "%2F") if escaped else path for path in routes]
    assert list(routes.values()) == [parse_route(quote(path, safe="/:%").encode()) for path in paths]


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: b"/v2/" + text.encode()))
def test_any_octets_are_a_route_or_an_error_of_ours(octets: bytes) -> None:
    """Nothing that a client can send as a path fails otherwise, and the message can be sent back."""
    try:
        outcome: tuple[int, str] = (200, parse_route(octets).kind.value)
    except SluiceError as error:
        outcome = (error.status, error.message)
    status, text = outcome
    assert status in {200, 400, 404}
    assert text.encode().decode() == text


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"])
def test_methods_outside_the_table_are_not_allowed(kind: Kind, method: str) -> None:
    """The error carries the Allow header with exactly the table's methods."""
    route = Route(kind)
    if method in ALLOWED[kind]:
        check_method(route, method)
        return
    with pytest.raises(MethodNotAllowed) as caught:
        check_method(route, method)
    assert ", ".join(ALLOWED[kind]) == caught.value.allow
