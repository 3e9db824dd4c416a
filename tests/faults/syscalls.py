"""System calls of a traced server, and the order in which a durable write must make them.

SIGKILL leaves the page cache alone, so no crash suite can show a missing fsync; the order of the calls can. A call
counts as made when it has returned and as begun when it was entered (strace prints both where threads interleave).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = (
    "strace", "-D", "-f", "-y", "-s", "48",
    "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,write,writev,pwrite64,pwritev,pwritev2,"
    "sendto,sendmsg",
    "-o",
)  # fmt: skip
"""The prefix of the server's command; the trace's path follows."""

_WHOLE = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_BEGUN = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(?P<thread>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<arguments>.*)\) += (?P<result>-?\d+)")
_FILE = re.compile(r"^\d+<(?P<path>[^>]*)>")
_NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded: entered at ``begin``, returned at ``end`` (lines of the trace)."""

    name: str
    arguments: str
    begin: int
    end: int

    @property
    def path(self) -> str:
        """The path of the file descriptor that it is about; empty where there is none."""
        found = _FILE.match(self.arguments)
        return found["path"] if found else ""

    @property
    def names(self) -> list[str]:
        """The paths or texts among its arguments."""
        return _NAMES.findall(self.arguments)


def parse(trace: str) -> list[Call]:
    """All successful calls, in the order in which they returned."""
    return list(_calls(trace))


def _calls(trace: str) -> Iterator[Call]:
    open_calls: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        if begun := _BEGUN.match(line):
            open_calls[begun["thread"]] = (number, begun["arguments"])
        elif ended := _ENDED.match(line):
            begin, arguments = open_calls.pop(ended["thread"], (number, ""))
            if int(ended["result"]) >= 0:
                yield Call(ended["name"], arguments + ended["arguments"], begin, number)
        elif (whole := _WHOLE.match(line)) and int(whole["result"]) >= 0:
            yield Call(whole["name"], whole["arguments"], number, number)


def durability_violations(calls: Sequence[Call], data: Path, digests: Sequence[str]) -> list[str]:
    """What is wrong with the order of a server's calls while it took ``digests`` one after the other, in words.

    The n-th 201 must come after: the file's fsync, its rename into ``content/``, the fsync of its directory, the
    writing of the index's log and that log's fsync, each begun when the one before had returned.
    """
    created = [call for call in calls if "HTTP/1.1 201" in call.arguments and call.path.startswith("socket:")]
    if len(created) != len(digests):
        return [f"{len(created)} answers 201 for {len(digests)} pushes"]
    return [
        f"{digest}: {complaint}"
        for digest, answer in zip(digests, created, strict=True)
        for complaint in _complaints([call for call in calls if call.end < answer.begin], data, digest)
    ]


def fill_violations(calls: Sequence[Call], data: Path, digests: Sequence[str]) -> list[str]:
    """The same for what a cache has fetched, which nobody is told about: the steps come in this order, and all come."""
    return [f"{digest}: {complaint}" for digest in digests for complaint in _complaints(calls, data, digest, "the end")]


def _complaints(calls: Sequence[Call], data: Path, digest: str, by: str = "the 201") -> Iterator[str]:
    algorithm, hexadecimal = digest.split(":")
    final = data / "content" / algorithm / hexadecimal[:2] / hexadecimal
    rename = next((call for call in calls if call.name.startswith("rename") and call.names[-1] == str(final)), None)
    if rename is None:
        yield f"was not renamed into content/ before {by}"
        return
    yield from _file_complaints(calls, rename)
    yield from _directory_complaints(calls, data, final.parent)
    directory = _synced_after(calls, str(final.parent), rename.end)
    if directory is None:
        yield f"its directory was not fsynced between rename and {by}"
        return
    log = f"{data / 'index.sqlite'}-wal"
    entered = next((call for call in calls if "write" in call.name and call.path == log and call.begin > directory.end), None)  # fmt: skip # noqa: E501
    if entered is None:
        yield f"the index was not written between the directory's fsync and {by}"
    elif _synced_after(calls, log, entered.end) is None:
        yield f"the index was not fsynced between its write and {by}"


def _file_complaints(calls: Sequence[Call], rename: Call) -> Iterator[str]:
    staged = rename.names[0]
    written = [call for call in calls if "write" in call.name and call.path == staged]
    if not written:
        yield f"nothing was written to {staged}, which was renamed into content/"
        return
    synced = _synced_after(calls, staged, max(call.end for call in written))
    if synced is None or synced.end >= rename.begin:
        yield "its file was not fsynced between the last write and the rename"


def _directory_complaints(calls: Sequence[Call], data: Path, shard: Path) -> Iterator[str]:
    """Each directory that was made on the way to the file has its name on the disk as well."""
    for directory in (shard, *shard.parents):
        made = next((call for call in calls if call.name.startswith("mkdir") and call.names[0] == str(directory)), None)
        if made is not None and _synced_after(calls, str(directory.parent), made.end) is None:
            yield f"{directory} was made and {directory.parent} not fsynced before the 201"
        if directory == data:
            return


def _synced_after(calls: Sequence[Call], path: str, after: int) -> Call | None:
    return next(
        (call for call in calls if call.name in {"fsync", "fdatasync"} and call.path == path and call.begin > after),
        None,
    )
