"""Bodies that the registry renders itself: errors and listings."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice import errors
from sluice.errors import SluiceError
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import OCI_INDEX, OCI_MANIFEST
from sluice.wire.listing import render_catalog, render_referrers, render_tags
from sluice.wire.problem import problem_headers, render_errors

any_text = st.text(st.characters())
DIGEST = Digest("sha256", "a" * 64)
JSON = (b"content-type", b"application/json")


@given(any_text, st.none() | any_text | st.lists(st.integers()) | st.dictionaries(any_text, any_text))
def test_an_error_survives_being_rendered(message: str, detail: object) -> None:
    """Any text, half a surrogate pair included; detail only where there is one."""
    body = render_errors(errors.BlobUnknown(message, detail=detail))
    entry = {"code": "BLOB_UNKNOWN", "message": message} | ({} if detail is None else {"detail": detail})
    assert {"errors": [entry]} == json.loads(body)


def test_the_body_is_compact() -> None:
    """Byte for byte; a digest in the detail is its text."""
    error = errors.ManifestBlobUnknown("gone", detail=[DIGEST])
    expected = '{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"gone","detail":["' + str(DIGEST) + '"]}]}'
    assert expected.encode() == render_errors(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.BlobUnknown("x"), []),
        (errors.Unauthorized("x", challenge='Basic realm="\u20ac"'), [(b"www-authenticate", b'Basic realm="?"')]),
        (errors.MethodNotAllowed("x", allow="GET, HEAD"), [(b"allow", b"GET, HEAD")]),
        (errors.RangeNotSatisfiable("x", size=10), [(b"content-range", b"bytes */10")]),
        (errors.UploadRangeInvalid("x", offset=10), []),
        (errors.TooManyUploads("x"), [(b"retry-after", b"5")]),
        (errors.StorageFull("x"), [(b"retry-after", b"30")]),
    ],
)
def test_headers_follow_from_the_error(error: SluiceError, expected: list[tuple[bytes, bytes]]) -> None:
    """The media type always, and what the status demands."""
    assert [JSON, *expected] == problem_headers(error)


def test_tags_and_catalog_are_the_specifications() -> None:
    """An empty page is an empty array."""
    assert render_tags("team/app", ["a", "b"]) == b'{"name":"team/app","tags":["a","b"]}'
    assert render_tags("team/app", ()) == b'{"name":"team/app","tags":[]}'
    assert render_catalog(["a", "b/c"]) == b'{"repositories":["a","b/c"]}'


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**53 - 1), st.none() | st.just("application/x+json"), st.dictionaries(any_text, any_text)
        )
    )
)
def test_referrers_are_an_index_of_descriptors(entries: list[tuple[int, str | None, dict[str, str]]]) -> None:
    """Every descriptor has what its manifest has, and no member that the manifest has not."""
    referrers = [Referrer(Descriptor(OCI_MANIFEST, DIGEST, size), kind, notes) for size, kind, notes in entries]
    found = json.loads(render_referrers(referrers))
    expected = [
        {"mediaType": OCI_MANIFEST, "digest": str(DIGEST), "size": size}
        | ({} if kind is None else {"artifactType": kind})
        | ({"annotations": notes} if notes else {})
        for size, kind, notes in entries
    ]
    assert {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": expected} == found


def test_referrers_parse_as_the_index_that_they_are() -> None:
    """Our own parser, which is strict, takes what we render."""
    referrer = Referrer(Descriptor(OCI_MANIFEST, DIGEST, 7), "application/x", {"k": "ü"})
    found = Manifest.parse(render_referrers([referrer, referrer]), OCI_INDEX)
    assert [child.digest for child in found.children] == [DIGEST, DIGEST]
