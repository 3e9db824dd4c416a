"""Rows as a table on the terminal and as ``docs/benchmarks.md``."""

from __future__ import annotations

from collections.abc import Sequence

from bench.content import MIB
from bench.measure import Row, Series, Verdict

Cells = Sequence[str]

_HEAD = ("row", "peer", "min", "median", "max", "unit", "server CPU", "client CPU", "peak MiB")
_RIGHT = frozenset({"min", "median", "max", "reached", "peak MiB"})
_BAR_HEAD = ("row", "what", "to reach", "reached", "")

_TIMES = "\N{MULTIPLICATION SIGN}"

_INTRO = """# Benchmarks

Written by `make bench` (`python -m bench`); a new run replaces it. Sluice, Debian's `docker-registry` and nginx serving
static files (the practical limit) hold the same content and are measured in turn on one machine.
"""

_METHOD = """## Method

- **Servers.** All run at once as plain child processes on loopback, each with its own defaults: Sluice with access
  checks, metrics and access log; docker-registry with the configuration that Debian ships, its in-memory descriptor
  cache included, without its password file; nginx with two workers, `sendfile`, `tcp_nopush` and its access log. All
  logs go to files. Only the server being measured has work.
- **TLS.** On for everything, with one EC P-256 certificate. Clients offer `TLS_AES_128_GCM_SHA256` alone, which Go's
  clients (containerd among them) put first, and HTTP/1.1.
- **Rounds** are interleaved: A B C, A B C, … Ratios are ratios of medians.
- **Server CPU** is user plus system time of the server's whole process tree (`/proc/PID/stat`), divided by the work
  done. What the kernel does in softirq context on loopback lands on whoever runs then, for all peers alike.
- **Peak MiB** is `VmHWM` over the row, reset before it (in row 6 before each round) and summed over the processes of
  the tree, so that pages which nginx's workers share count more than once.
- **Rows 1 and 2**: wrk, 2 threads, 32 kept connections, containerd's `Accept`; a single answer other than 2xx fails the
  run. In row 2 the bearer token goes with each request and is checked with each request.
- **Row 3**: client and server share two cores, and a client that decrypts costs about as much as the server: its
  figures show the client. The client of row 3 therefore **decrypts the response head only and lets the kernel discard
  the rest of the ciphertext** (`recv` with `MSG_TRUNC`). It checks the status, Content-Length, and that the ciphertext
  is as long as such a body makes it; the server does all of its work. Time runs inside the client from the first
  connect to the last byte; there is one warm-up. Row 3b is the same load by 8 curl processes that decrypt everything.
  Before both, a download from each peer was hashed and compared with the digest. Files are in the page cache.
- **Rows 4 and 5**: new random bytes in each round, the same for both registries; `sync` before each measurement. Row 4
  is a POST and a PUT by curl (no `Expect`); beside it, Sluice with `storage.pace_pushes`, which holds pushes to the
  ceiling on bulk writes too. Row 5 runs 8 kept connections from one process: HEAD, POST, PATCH and PUT
  per layer, as docker and skopeo send them, then config and manifest; connecting is on the clock. Row 5b sends the
  layer with the PUT, as containerd does.
- **Row 6**: 64 pulls (row 3's client) and 16 pushes (curl) start together. The worst round is judged. nginx takes no
  pushes, its figure is the pulls alone.
- **Row 7**: from `exec` to the first 200 of `/readyz` with the registry's own address accepting connections, polled
  every 5 ms, with a warm page cache. The index is generated in SQLite (blobs, links, manifests, edges, tags, history);
  before the clock, a listing shows that the server sees it.
- **Rows 8 to 16** stand before an upstream on loopback, in the mode that the row names: TLS to the clients, and to the
  upstream where the row says so. Sluice has its defaults, the ceiling on bulk writes among them, unless the peer's name
  says otherwise. What the upstream takes of the two cores is missing from every figure alike.
- **Row 8** counts at a scripted upstream the GETs of each layer; the most of any layer is the figure.
- **Row 9**: the link is a relay of limited speed before nginx; both the straight way and the one through Sluice go
  through it. **Row 10**: the same docker-registry is the upstream of both; a new blob in each round, `sync` before each
  measurement, until the client has the last byte. Sluice's last bytes go out when the digest is verified and it fetches
  once. docker-registry's proxy mode passes the client a download of its own, unverified, and stores a second one.
  Row 10b is the same until the server holds the blob, as a file under its name: durable in Sluice's case.
- **Row 11**: the time from the request on a kept connection to the first byte of the body, minus the same straight from
  the upstream.
- **Row 12**: freshness of 0 s, so that every pull finds its tag expired; row 1's client. The dead upstream refuses
  connections.
- **Row 13** is rows 1 and 3 on what a cache holds, beside the same in Local mode.
- **Row 14**: nginx, serving a file over TLS, is the upstream of both; nginx as the proxy verifies it, keeps
  connections, and writes no temporary files.
- **Row 15**: each round has a fresh server and an empty directory; 64 clients (row 3's), four for each blob.
- **Row 16**: etcd with its defaults on the same disk. p99 is reckoned from its own histogram as Prometheus does, so
  its resolution is that of the buckets (… 4, 8, 16, 32, 64 ms …). The bar is twice what it is alone, or 10 ms, the
  greater. A part ends when the server holds all blobs, as files under their names; row 16b has the rates up to then.
- **Rows 17 and 18**: HAProxy with the configuration that a node gets, before one Sluice in Local mode. The client is
  curl, because what comes straight has to be decrypted by somebody, in the client or in the balancer.
"""


def terminal(rows: Sequence[Row]) -> str:
    """The figures and the bars in aligned columns."""
    titles = [f"{row.number:>3}  {row.title}" for row in rows]
    bars = _bars(rows)
    verdicts = [_aligned(_BAR_HEAD, bars), ""] if bars else []
    return "\n".join([*titles, "", _aligned(_HEAD, _figures(rows)), "", *verdicts])


def document(rows: Sequence[Row], machine: Sequence[tuple[str, str]], date: str, rounds: int) -> str:
    """The page, whole. ``date`` is shown as given."""
    about = [("date", date), ("rounds", str(rounds)), *machine]
    parts = [
        _INTRO,
        "## Result\n",
        _markdown(_BAR_HEAD, _bars(rows)),
        "## Figures\n",
        _markdown(_HEAD, _figures(rows)),
        "\n".join(f"- Row {row.number}: {row.title}{f' ({row.note})' if row.note else ''}." for row in rows) + "\n",
        _METHOD,
        "## Machine and versions\n",
        _markdown(("what", "value"), about),
        _raw(rows),
    ]
    return "\n".join(parts)


def _figures(rows: Sequence[Row]) -> list[Cells]:
    return [_figure(row, series) for row in rows for series in row.series]


def _figure(row: Row, series: Series) -> Cells:
    values = series.values
    client = series.client_cost_s
    return (
        row.number,
        series.name,
        *(_number(value) for value in (min(values), series.median, max(values))),
        row.unit,
        f"{_number(series.server_cost_s * row.cost.scale)} {row.cost.label}",
        "" if client is None else f"{_number(client * row.cost.scale)} {row.cost.label}",
        f"{series.peak_bytes / MIB:.0f}",
    )


def _bars(rows: Sequence[Row]) -> list[Cells]:
    return [_bar(row, verdict) for row in rows for verdict in row.verdicts()]


def _bar(row: Row, verdict: Verdict) -> Cells:
    bar = verdict.bar
    sign = "≤" if bar.at_most else "≥"
    if bar.against is None:
        wanted = f"{sign} {bar.limit:g} {row.unit}"
    elif bar.more:
        wanted = f"{sign} {bar.limit:g} {row.unit} more than {bar.against}"
    else:
        wanted = f"{sign} {bar.limit:g} {_TIMES} {bar.against}"
    if bar.suffices is not None:
        wanted += f", or {sign} {bar.suffices:g} {row.unit}"
    if len({bar.subject for bar in row.bars}) > 1:
        wanted = f"{bar.subject}: {wanted}"
    return row.number, row.title, wanted, f"{verdict.reached:.2f}", "met" if verdict.met else "**missed**"


def _raw(rows: Sequence[Row]) -> str:
    cells = [
        (row.number, series.name, row.unit, ", ".join(_number(value) for value in series.values))
        for row in rows
        for series in row.series
    ]
    table = _markdown(("row", "peer", "unit", "rounds in order"), cells)
    return f"<details>\n<summary>Every round</summary>\n\n{table}\n</details>\n"


def _number(value: float) -> str:
    """Three digits at least, none that the noise has long swallowed."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _markdown(head: Cells, rows: Sequence[Cells]) -> str:
    rule = ["---:" if name in _RIGHT else "---" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)) + "\n"


def _aligned(head: Cells, rows: Sequence[Cells]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(_line(head, cells, widths) for cells in (head, *rows))


def _line(head: Cells, cells: Cells, widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if name in _RIGHT else cell.ljust(width)
        for name, cell, width in zip(head, cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip().replace("**", "")
