"""``python -m bench [--rows 1,3] [--rounds N] [--quick] [--peers A,B] [--output FILE]``: run rows and report them.

A whole run at full size writes ``docs/benchmarks.md``; any other only prints, unless ``--output`` says where to.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import (
    machine,
    report,
    rows_agent,
    rows_cache,
    rows_cold,
    rows_lab,
    rows_limits,
    rows_neighbour,
    rows_node,
    rows_pull,
    rows_push,
)
from bench.measure import Row, show_progress
from bench.peers import NGINX, REGISTRY, SLUICE
from bench.site import ROOT, Scale, Site, open_site
from bench.wire import BenchError

ROUNDS_MIN = 5
PAGE = ROOT / "docs" / "benchmarks.md"
_PROGRAMS = ("wrk", "curl", "nginx", "docker-registry", "etcd", "haproxy")
_PACKAGES = "wrk curl nginx-light docker-registry etcd-server haproxy"
_ROWS: dict[str, Callable[[Site], list[Row]]] = {
    "1": rows_pull.manifests,
    "2": rows_pull.manifests_with_token,
    "3": rows_pull.blobs,
    "4": rows_push.blobs,
    "5": rows_push.images,
    "6": rows_limits.memory,
    "7": rows_limits.start,
    "8": rows_cold.crowd,
    "9": rows_cold.limited,
    "10": rows_cold.unlimited,
    "11": rows_cold.first_byte,
    "12": rows_cache.stale,
    "13": rows_cache.hits,
    "14": rows_cache.direct,
    "15": rows_cache.fills,
    "16": rows_neighbour.etcd,
    "17": rows_node.balancer,
    "19": rows_agent.agent,
    "22": rows_lab.laboratory,
}
_PEERS = (SLUICE, REGISTRY, NGINX)


def main() -> int:
    """Exit code 0 when everything ran (whether or not each bar is met), 1 when a row could not be measured."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started this in the background, SIGINT ignored
        signal.signal(number, _interrupt)
    options = _options()
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return _fail(f"not installed: {', '.join(missing)}; on Debian: apt-get install {_PACKAGES}")
    scale = Scale(options.rounds, options.quick)
    try:
        rows = _run(scale, options.rows, frozenset(options.peers))
    except (BenchError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    print(report.terminal(rows))
    output = options.output or (PAGE if _whole(scale, options.rows, options.peers) else None)
    if output is not None:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        output.write_text(report.document(rows, machine.describe(), today, scale.rounds))
        show_progress(f"written to {output}")
    return 0


def _run(scale: Scale, numbers: list[str], peers: frozenset[str]) -> list[Row]:
    rows: list[Row] = []
    with open_site(scale, peers) as site:
        for number in numbers:
            show_progress(f"row {number}")
            rows += _ROWS[number](site)
    return rows


def _whole(scale: Scale, numbers: list[str], peers: list[str]) -> bool:
    return not scale.quick and scale.rounds >= ROUNDS_MIN and numbers == list(_ROWS) and peers == list(_PEERS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Sluice beside its peers, in one run.")
    parser.add_argument("--rows", type=_some_of(tuple(_ROWS)), default=list(_ROWS), help="which rows, e.g. 1,3")
    parser.add_argument("--peers", type=_some_of(_PEERS), default=list(_PEERS), help=f"which of {','.join(_PEERS)}")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS_MIN, help="rounds per row, interleaved (default 5)")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the size: tries the harness, no more")
    parser.add_argument("--output", type=Path, help=f"where to write the page (default for a whole run: {PAGE.name})")
    return parser.parse_args()


def _some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = [part.strip() for part in text.split(",")]
        unknown = [part for part in chosen if part not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
