"""Metrics and the access log: numbers add up, and no client can write a log line of its own."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sluice.telemetry import Access, Metrics, _access_human, _access_json


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_operation_method_and_status() -> None:
    """The exposition has a histogram and the bytes sent for each combination."""
    metrics = Metrics()
    metrics.series("blob", "GET", 200).observe(0.003, 100)
    metrics.series("blob", "GET", 200).observe(7.0, 20)
    found = samples(metrics)
    labels = (("method", "GET"), ("operation", "blob"), ("status", "200"))
    assert 2 == found["sluice_request_seconds_count", labels]
    assert 7.003 == found["sluice_request_seconds_sum", labels]
    assert 1 == found["sluice_request_seconds_bucket", (("le", "0.005"), *labels)]
    assert 120 == found["sluice_sent_bytes_total", labels]


def test_gauges_are_read_at_each_scrape() -> None:
    """A gauge is what its function says now."""
    metrics, values = Metrics(), iter([1.0, 2.0])
    metrics.gauge("store_bytes", "Bytes", lambda: next(values))
    assert [1.0, 2.0] == [samples(metrics)["sluice_store_bytes", ()] for _ in range(2)]


entries: st.SearchStrategy[Access] = st.tuples(
    st.floats(0, 4e9),
    st.sampled_from(["GET", "PUT"]),
    st.binary(max_size=80),
    st.integers(100, 599),
    st.integers(0, 1 << 40),
    st.floats(0, 1e6),
    st.just("127.0.0.1"),
    st.text(max_size=40),
    st.binary(max_size=80),
)


@given(entries)
def test_every_request_is_one_line_of_json(entry: Access) -> None:
    """Whatever a client sends as path, name or agent, it stays inside its own line and field."""
    text = _access_json(entry)
    assert 1 == text.count("\n")
    parsed = json.loads(text)
    _, method, path, status, sent, _, client, user, agent = entry
    expected = [method, path.decode("latin-1"), status, sent, client, user, agent.decode("latin-1")]
    assert expected == [parsed[name] for name in ("method", "path", "status", "bytes", "client", "user", "agent")]


@given(entries)
def test_every_request_is_one_line_for_people(entry: Access) -> None:
    """No control character of a client's reaches the terminal."""
    text = _access_human(entry)
    assert [] == [character for character in text[:-1] if ord(character) < 32 or 127 <= ord(character) < 160]
