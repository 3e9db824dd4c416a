"""Digests, repository names, tags: what the specifications' grammars take, and nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import DigestInvalid, NameInvalid
from sluice.oci.digest import HEX_LENGTH, Digest
from sluice.oci.reference import NAME_LENGTH_MAX, parse_reference, parse_repository, parse_tag

HEX = "0123456789abcdef"


@given(st.sampled_from(sorted(HEX_LENGTH)), st.data())
def test_a_digest_survives_being_written_and_parsed(algorithm: str, data: st.DataObject) -> None:
    """parse(str(digest)) is the digest."""
    length = HEX_LENGTH[algorithm]
    digest = Digest(algorithm, data.draw(st.text(HEX, min_size=length, max_size=length)))
    assert digest == Digest.parse(str(digest))


@pytest.mark.parametrize("algorithm", sorted(HEX_LENGTH))
def test_a_digest_is_that_of_the_bytes(algorithm: str) -> None:
    """``of`` and a fed ``hasher`` agree with hashlib."""
    expected = hashlib.new(algorithm, b"sluice").hexdigest()
    digest = Digest.of(b"sluice", algorithm)
    hasher = digest.hasher()
    hasher.update(b"slu")
    hasher.update(b"ice")
    assert (expected, expected) == (digest.hex, hasher.hexdigest())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 128,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "\u0663" * 64,
    ],
)
def test_any_other_digest_is_refused(text: str) -> None:
    """Only the two registered algorithms in lower-case hexadecimal of the right length are digests."""
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@pytest.mark.parametrize(
    "name", ["a", "team/app", "registry.test/a__b/c-d/e.f/g---h", "0/1/2", "a" * NAME_LENGTH_MAX, "blobs/uploads"]
)
def test_names_in_the_grammar_are_taken(name: str) -> None:
    """A repository name is returned as it came."""
    assert name == parse_repository(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "A",
        "a_",
        "_a",
        "a___b",
        "a..b",
        "a/-b",
        "a b",
        "a\n",
        "ä",
        "a" * 256,
        "host:5000/a",
    ],
)
def test_names_outside_the_grammar_are_refused(name: str) -> None:
    """The error is the specification's NAME_INVALID."""
    with pytest.raises(NameInvalid):
        parse_repository(name)


def test_a_reference_is_a_digest_where_it_has_a_colon() -> None:
    """No tag has a colon, so the two never mix."""
    text = "sha256:" + "a" * 64
    assert (Digest("sha256", "a" * 64), "v1.0") == (parse_reference(text), parse_reference("v1.0"))
    with pytest.raises(DigestInvalid):
        parse_reference("v1:0")


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a/b", "a" * 129, "ä", "a\n", "a b"])
def test_tags_outside_the_grammar_are_refused(tag: str) -> None:
    """The error is the specification's NAME_INVALID."""
    with pytest.raises(NameInvalid):
        parse_tag(tag)
