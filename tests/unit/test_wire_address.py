"""Upstream addresses as an operator writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ConfigInvalid, NameInvalid
from sluice.oci.reference import Repository, parse_repository
from sluice.wire.address import ADDRESS_LENGTH_MAX, UpstreamAddress, parse_upstream

component = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?", fullmatch=True).filter(lambda text: len(text) < 20)
host = st.one_of(
    st.lists(st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?", fullmatch=True), min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("registry.example.com", ("https", "registry.example.com", 443, ""), "https://registry.example.com"),
        ("http://h", ("http", "h", 80, ""), "http://h"),
        ("HTTPS://Docker.IO/", ("https", "docker.io", 443, ""), "https://docker.io"),
        ("localhost:5000", ("https", "localhost", 5000, ""), "https://localhost:5000"),
        ("http://h:443/team/images", ("http", "h", 443, "team/images"), "http://h:443/team/images"),
        ("https://h:443/a/", ("https", "h", 443, "a"), "https://h/a"),
        ("h:65535/a__b/c-d.e", ("https", "h", 65535, "a__b/c-d.e"), "https://h:65535/a__b/c-d.e"),
        ("10.0.0.1:5000", ("https", "10.0.0.1", 5000, ""), "https://10.0.0.1:5000"),
        ("[::1]", ("https", "::1", 443, ""), "https://[::1]"),
        ("http://[2001:DB8:0::1]:5000/x", ("http", "2001:db8::1", 5000, "x"), "http://[2001:db8::1]:5000/x"),
        ("xn--bcher-kva.example", ("https", "xn--bcher-kva.example", 443, ""), "https://xn--bcher-kva.example"),
    ],
)
def test_an_address_is_read(text: str, expected: tuple[str, str, int, str], canonical: str) -> None:
    """HTTPS and its port where nothing is said, and one canonical form."""
    address = parse_upstream(text)
    assert UpstreamAddress(*expected) == address
    assert canonical == str(address)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no host"),
        ("https://", "names no host"),
        (":5000", "names no host"),
        ("/team", "names no host"),
        ("ftp://h", "scheme 'ftp'"),
        ("oci://h", "scheme 'oci'"),
        ("user:secret@h", "user name"),
        ("https://user@h/x", "user name"),
        ("h/a@sha256", "user name"),
        ("h?x=1", "a query"),
        ("h/a#b", "a fragment"),
        ("h\\a", "a backslash"),
        ("h:0", "port"),
        ("h:65536", "port"),
        ("h:", "port"),
        ("h:+5", "port"),
        ("h:5 0", "port"),
        ("h:\u0665", "port"),
        ("::1", "more than one colon"),
        ("[::1", "brackets"),
        ("[::1]x", "brackets"),
        ("[::g]", "no IPv6"),
        ("[1.2.3.4]", "no IPv6"),
        ("[fe80::1%eth0]", "zone"),
        ("a..b", "neither a DNS name"),
        ("-a.b", "neither a DNS name"),
        ("a b", "neither a DNS name"),
        ("b\u00fccher.example", "neither a DNS name"),
        ("a" * 64, "neither a DNS name"),
        (".".join(["a" * 60] * 5), "neither a DNS name"),
        ("\u212a.example", "neither a DNS name"),
        (" h", "white space around"),
        ("h\n", "white space around"),
        ("h/a\r", "white space around"),
        ("1.2.3", "IPv4"),
        ("256.1.1.1", "IPv4"),
        ("0x7f000001.1", "IPv4"),
        ("h//", "empty part"),
        ("h/a//b", "none of repositories"),
        ("h/../b", "none of repositories"),
        ("h/a/..", "none of repositories"),
        ("h/./b", "none of repositories"),
        ("h/Team", "none of repositories"),
        ("h/a%2fb", "none of repositories"),
        ("h/a b", "none of repositories"),
        ("h/a:5", "none of repositories"),
        ("h/" + "a" * 129, "path of 129 characters"),
        ("h/v2/team", "/v2 in its path"),
        ("a" * (ADDRESS_LENGTH_MAX + 1), "more than 1024 characters"),
    ],
)
def test_a_wrong_address_is_refused_with_field_value_and_remedy(text: str, problem: str) -> None:
    """The message begins with the setting's name and holds no more of the value than fits."""
    with pytest.raises(ConfigInvalid) as caught:
        parse_upstream(text, "registries.quay.upstream")
    message = caught.value.message
    assert message.startswith("registries.quay.upstream is ")
    assert problem in message
    assert "secret" not in message
    assert len(message) < 400


@given(
    st.sampled_from(["", "http://", "https://"]),
    host,
    st.none() | st.integers(1, 65535),
    st.lists(component, max_size=4),
)
def test_the_canonical_form_means_the_same(scheme: str, name: str, port: int | None, path: list[str]) -> None:
    """Whatever can be written can be written again from what was read."""
    text = f"{scheme}{name}{'' if port is None else f':{port}'}{''.join('/' + part for part in path)}"
    if path[:1] == ["v2"]:
        return
    address = parse_upstream(text)
    assert address == parse_upstream(str(address))
    assert "/".join(path) == address.prefix
    assert address.url("/v2/") == f"{address.origin}/v2/"


@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    """An address or ConfigInvalid; and an address has a host, a port and a repository's path."""
    try:
        address = parse_upstream(text)
    except ConfigInvalid:
        return
    assert address.host
    assert 1 <= address.port <= 65535
    assert not address.prefix or parse_repository(address.prefix) == address.prefix


def test_a_name_is_mapped_below_the_path() -> None:
    """And refused where both together are longer than any registry takes."""
    assert "app" == parse_upstream("h").repository(Repository("app"))
    assert "team/images/app" == parse_upstream("h/team/images").repository(Repository("app"))
    with pytest.raises(NameInvalid, match="too long for the upstream https://h/team"):
        parse_upstream("h/team").repository(Repository("a" * 251))
