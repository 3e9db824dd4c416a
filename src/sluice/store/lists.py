"""The lists that a cache has seen, as text under the question that they answer: for when the upstream cannot be asked.

Bounded in number and size; those seen longest ago leave first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from sluice.store.index import Index

LISTS_MAX = 1000
LIST_LENGTH_MAX = 1 << 20  # characters of question and list; a longer one is not kept
LISTS_LENGTH_MAX = 16 << 20  # of all together
SEEN_AGAIN_S = 600.0  # an unchanged list is written again after that


def keep_list(connection: sqlite3.Connection, question: str, text: str, now: float) -> None:
    """``text`` answers ``question`` from now on."""
    length = len(question) + len(text)
    if length > LIST_LENGTH_MAX:
        drop_list(connection, question)
        return
    connection.execute(
        "INSERT INTO cached_lists(question, list, length, seen_at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET list = excluded.list, length = excluded.length, seen_at = excluded.seen_at"
        " WHERE list != excluded.list OR abs(excluded.seen_at - seen_at) > ?",
        (question, text, length, now, SEEN_AGAIN_S),
    )
    connection.execute(
        "DELETE FROM cached_lists WHERE question IN (SELECT question FROM (SELECT question,"
        " row_number() OVER newest AS place, sum(length) OVER newest AS total FROM cached_lists"
        " WINDOW newest AS (ORDER BY seen_at DESC, question)) WHERE place > ? OR total > ?)",
        (LISTS_MAX, LISTS_LENGTH_MAX),
    )


def drop_list(connection: sqlite3.Connection, question: str) -> None:
    """Keep it no longer; not an error where it is not kept."""
    connection.execute("DELETE FROM cached_lists WHERE question = ?", (question,))


def find_list(connection: sqlite3.Connection, question: str) -> str | None:
    """The list that answered the question last; None where none is kept."""
    row = connection.execute("SELECT list FROM cached_lists WHERE question = ?", (question,)).fetchone()
    return None if row is None else str(row[0])


class KeptLists:
    """Those of one store. ``clock`` in seconds since the epoch."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock

    async def keep(self, question: str, text: str | None) -> None:
        """The upstream just answered ``question`` with ``text``; None: keep what it answered no longer."""
        now = self._clock()
        if text is None:
            await self._index.write(lambda c: drop_list(c, question))
        else:
            await self._index.write(lambda c: keep_list(c, question, text, now))

    async def find(self, question: str) -> str | None:
        """What the upstream last answered; None where that is not kept."""
        return await self._index.fetch(lambda c: find_list(c, question))
