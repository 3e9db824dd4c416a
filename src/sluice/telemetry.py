"""What the server tells about itself: logs, the access log and metrics.

The request path only adds numbers to counters and a tuple to a list; formatting and writing happen a tenth of a
second later on another thread, and Prometheus' text is made when it is asked for. That is what lets access log and
metrics stay on at full speed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ACCESS_FLUSH_S = 0.1
ACCESS_PENDING_MAX = 200_000
ACCESS_PARTS_MAX = 1024
"""Parts of lines kept for the next line that has them."""
_STDERR = 2


Access = tuple[float, str, bytes, int, int, float, str, str, bytes]
"""One served request: when (seconds since the epoch), method, raw path, status, body bytes sent, seconds that it took,
the client's address, who it was, and its User-Agent. A bare tuple, since one is made for each request."""


class RequestSeries:
    """Counters of one (operation, method, status) combination."""

    __slots__ = ("buckets", "count", "seconds", "sent")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.sent = 0
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def observe(self, seconds: float, sent: int) -> None:
        """Count one request that took ``seconds`` and sent ``sent`` body bytes."""
        self.count += 1
        self.seconds += seconds
        self.sent += sent
        self.buckets[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1


class Metrics(Collector):
    """All counters and gauges of one server, in Prometheus' text format on demand."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], RequestSeries] = {}
        self._counters: dict[str, tuple[str, float]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._read_counters: dict[str, tuple[str, Callable[[], float]]] = {}
        self._families: dict[
            str, tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, Callable[[], Mapping[str, float]]]
        ] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def series(self, operation: str, method: str, status: int) -> RequestSeries:
        """The counters for this combination, made on first use. Operations and statuses are few by construction."""
        key = (operation, method, status)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = RequestSeries()
        return found

    def count(self, name: str, text: str, amount: float = 1) -> None:
        """Add to the counter ``sluice_<name>``; ``text`` explains it."""
        self._counters[name] = (text, self._counters.get(name, (text, 0.0))[1] + amount)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register ``sluice_<name>``, read from ``value`` at each scrape."""
        self._gauges[name] = (text, value)

    def counter(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register the counter ``sluice_<name>`` that is kept elsewhere, read from ``value`` at each scrape."""
        self._read_counters[name] = (text, value)

    def family(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Register a gauge for each value of ``label``, read from ``values`` at each scrape."""
        self._families[name] = (GaugeMetricFamily, text, label, values)

    def counter_family(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """The same for counters."""
        self._families[name] = (CounterMetricFamily, text, label, values)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus-client at each scrape."""
        yield from self._requests()
        for name, (text, value) in list(self._counters.items()):
            yield CounterMetricFamily(f"sluice_{name}", text, value=value)
        for name, (text, read) in list(self._gauges.items()):
            yield GaugeMetricFamily(f"sluice_{name}", text, value=read())
        for name, (text, read) in list(self._read_counters.items()):
            yield CounterMetricFamily(f"sluice_{name}", text, value=read())
        for name, (kind, text, label, values) in list(self._families.items()):
            family = kind(f"sluice_{name}", text, labels=[label])
            for labelled, number in values().items():
                family.add_metric([labelled], number)
            yield family

    def _requests(self) -> Iterator[Metric]:
        labels = ["operation", "method", "status"]
        latency = HistogramMetricFamily(
            "sluice_request_seconds", "Time from request to last byte handed over", labels=labels
        )
        sent = CounterMetricFamily("sluice_sent_bytes", "Response body bytes", labels=labels)
        for (operation, method, status), series in list(self._series.items()):
            values = [operation, method, str(status)]
            latency.add_metric(values, _cumulative(series.buckets), series.seconds)
            sent.add_metric(values, series.sent)
        yield latency
        yield sent


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total = 0
    result: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, LATENCY_BOUNDS_S), "+Inf"], buckets, strict=True):
        total += count
        result.append((bound, float(total)))
    return result


def _quoted(data: bytes | str) -> str:
    """As a JSON string in printable ASCII, whatever a client sent."""
    text = data if isinstance(data, str) else data.decode("latin-1")
    return json.dumps(text).replace("\x7f", "\\u007f")


def _plain(data: bytes | str) -> str:
    return _quoted(data)[1:-1]


@lru_cache(64)
def _clock(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


# A pull asks for the same things as the one before it, so most of a line is there already.


@lru_cache(ACCESS_PARTS_MAX)
def _json_what(method: str, path: bytes, status: int, sent: int) -> str:
    return (
        f'Z","level":"info","event":"request","method":"{method}","path":{_quoted(path)},"status":{status},'
        f'"bytes":{sent},"seconds":'
    )


@lru_cache(ACCESS_PARTS_MAX)
def _json_who(client: str, user: str, agent: bytes) -> str:
    return f',"client":"{client}","user":{_quoted(user)},"agent":{_quoted(agent)}}}\n'


@lru_cache(ACCESS_PARTS_MAX)
def _human_what(method: str, path: bytes, status: int, sent: int) -> str:
    return f"Z {status} {method} {_plain(path)} {sent}B "


@lru_cache(ACCESS_PARTS_MAX)
def _human_who(client: str, user: str, agent: bytes) -> str:
    return f"ms {client} {_plain(user)} {_quoted(agent)}\n"


def _access_json(entry: Access) -> str:
    at, method, path, status, sent, seconds, client, user, agent = entry
    second = int(at)
    what, who = _json_what(method, path, status, sent), _json_who(client, user, agent)
    return f'{{"time":"{_clock(second)}.{int((at - second) * 1000):03d}{what}{seconds:.6f}{who}'


def _access_human(entry: Access) -> str:
    at, method, path, status, sent, seconds, client, user, agent = entry
    second = int(at)
    what, who = _human_what(method, path, status, sent), _human_who(client, user, agent)
    return f"{_clock(second)}.{int((at - second) * 1000):03d}{what}{seconds * 1000:.1f}{who}"


class AccessLog:
    """Every request as a line on stderr, written in batches so that it costs the request path one list append."""

    def __init__(self, *, json_lines: bool, enabled: bool = True) -> None:
        self._format = _access_json if json_lines else _access_human
        self._pending: list[Access] = []
        self._task: asyncio.Task[None] | None = None
        self.enabled = enabled
        self.dropped = 0

    def record(self, entry: Access) -> None:
        """Take one request down; beyond ``ACCESS_PENDING_MAX`` unwritten lines it is counted as dropped."""
        if len(self._pending) < ACCESS_PENDING_MAX:
            self._pending.append(entry)
        else:
            self.dropped += 1

    def start(self) -> None:
        """Begin writing in the background of the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what is left and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._write(self._take())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ACCESS_FLUSH_S)
            batch = self._take()
            if batch:
                await asyncio.to_thread(self._write, batch)

    def _take(self) -> list[Access]:
        batch, self._pending = self._pending, []
        return batch

    def _write(self, batch: list[Access]) -> None:
        if batch:
            _write_all("".join(map(self._format, batch)).encode("utf-8", "backslashreplace"))


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(_STDERR, view) :]
    except OSError:
        return  # nobody reads stderr any more; serving goes on


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{time} {record.levelname.lower()}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(*, json_lines: bool, level: str) -> None:
    """Send ``sluice`` loggers to stderr in the chosen form; libraries speak from ``warning`` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json_lines else _HumanFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sluice").setLevel(level.upper())
    logging.getLogger("_granian").setLevel(logging.ERROR)
