"""What an operator can have done: garbage collection, checking, listing, users.

Each function works on the open store and users, and is called by two: by the running server for a command that came
over the admin socket, and by the CLI itself when no server runs. ``handlers`` names them for both. Arguments are
checked here, since a line of JSON can hold anything; results are plain values that JSON can hold.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from sluice.cache.space import Space
from sluice.config import RegistryConfig
from sluice.errors import ConfigInvalid, NameUnknown, Unavailable
from sluice.oci.reference import Repository, parse_repository, parse_tag
from sluice.server.admin import Arguments, Handler, Progress
from sluice.server.namespaces import Names
from sluice.server.operations_cache import CacheDesk, cache_handlers
from sluice.server.settings import space_settings, store_settings
from sluice.server.users import Role, User, Users
from sluice.store.changes import repository_id
from sluice.store.gc import GcReport, GcSchedule, collect, plan
from sluice.store.local import LocalStore
from sluice.store.paths import make_data_directory
from sluice.store.scrub import check

TAGS_PER_PAGE = 1000
USERS_PAGE_BYTES = 256 * 1024
"""Size from which on a page of users is full, in bytes of JSON."""

T = TypeVar("T")
Collect = Callable[[Progress], Awaitable[GcReport]]


def handlers(
    store: LocalStore, users: Users, schedule: GcSchedule, desk: CacheDesk | None = None
) -> Mapping[str, Handler]:
    """All commands of a running server by the name that the admin socket knows them under."""

    def collecting(progress: Progress) -> Awaitable[GcReport]:
        if desk is not None and desk.wiring is not None:
            _refuse_in_proxy(desk.wiring().mode)
        return schedule.collect(progress)

    cache = {} if desk is None else cache_handlers(desk)
    return {**store_handlers(store, collecting), **user_handlers(users), **cache}


def _refuse_in_proxy(mode: str) -> None:
    """What a cache holds is mostly what no tag reaches here, and leaves by the rules of ``cache.evict``."""
    if mode == "proxy":
        raise Unavailable("in proxy mode nothing is garbage: see sluice cache purge, cache.max_bytes and cache.ttl_s")


def store_handlers(store: LocalStore, collecting: Collect) -> Mapping[str, Handler]:
    """The commands about content. ``collecting`` is how garbage is collected here."""
    return {
        "gc": partial(gc, store, collecting),
        "fsck": partial(fsck, store),
        "tags": partial(tags, store),
        "history": partial(history, store),
    }


def user_handlers(users: Users) -> Mapping[str, Handler]:
    """The commands that need no store."""
    return {
        "user add": partial(user_add, users),
        "user list": partial(user_list, users),
        "user remove": partial(user_remove, users),
    }


async def perform_alone(config: RegistryConfig, command: str, arguments: Arguments, progress: Progress) -> object:
    """Run a command without a server, holding the data directory for as long as it takes.

    Users have a lock of their own. Raises what the command raises, and DataDirectoryBusy.
    """
    make_data_directory(config.data)
    alone = user_handlers(Users(config.data))
    if command in alone:
        return await alone[command](arguments, progress)
    async with _opened(config) as store:

        def collect_alone(told: Progress) -> Awaitable[GcReport]:
            _refuse_in_proxy(config.mode)
            return stoppable(partial(collect, store, offline=True), told)

        desk = CacheDesk(store, Space(store, space_settings(config)), lambda: Names(config.registries))
        known = {**store_handlers(store, collect_alone), **cache_handlers(desk)}
        return await known[command](arguments, progress)


@asynccontextmanager
async def _opened(config: RegistryConfig) -> AsyncIterator[LocalStore]:
    store = LocalStore.open(config.data, store_settings(config))
    try:
        await store.start()
        yield store
    finally:
        await store.close()


async def gc(store: LocalStore, collecting: Collect, arguments: Arguments, progress: Progress) -> object:
    """Collect garbage now, or with ``dry_run`` only say what would go. Returns a ``GcReport`` as an object.

    Raises GcRunning where one runs already.
    """
    if _switch(arguments, "dry_run"):
        report = await asyncio.to_thread(plan, store)
    else:
        report = await collecting(progress)
    return asdict(report)


async def fsck(store: LocalStore, arguments: Arguments, progress: Progress) -> object:
    """Check files against rows and hashes; with ``repair`` take damage out of service. Returns a ``FsckReport``."""
    repair = _switch(arguments, "repair")
    report = await stoppable(lambda told: check(store, repair, on_progress=told), progress)
    return {**asdict(report), "clean": report.clean}


async def tags(store: LocalStore, arguments: Arguments, _: Progress) -> object:
    """One page of tags, in the order of repository and tag.

    Takes ``repository`` (None: all) and ``after`` (None, or ``next`` of the page before). Returns ``tags``, objects
    with repository, tag, digest and at (seconds since the epoch), and ``next``, None on the last page. Raises
    NameUnknown.
    """
    repository, after = _text(arguments, "repository", None), arguments.get("after") or ["", ""]
    if not (isinstance(after, list) and len(after) == 2 and all(isinstance(part, str) for part in after)):
        raise ConfigInvalid(f"after is {after!r}: give the next of the page before")
    name = None if repository is None else parse_repository(repository)
    found = await store.index.fetch(partial(_page_of_tags, one=name, after=(after[0], after[1])))
    rows = [{"repository": row[0], "tag": row[1], "digest": row[2], "at": row[3]} for row in found]
    return {"tags": rows, "next": [found[-1][0], found[-1][1]] if len(found) == TAGS_PER_PAGE else None}


async def history(store: LocalStore, arguments: Arguments, _: Progress) -> object:
    """Where ``tag`` of ``repository`` pointed, newest first: ``moves`` with digest (None: deleted), actor and at."""
    repository = parse_repository(_text(arguments, "repository"))
    events = await store.tag_history(repository, parse_tag(_text(arguments, "tag")))
    return {
        "moves": [
            {"digest": str(event.digest) if event.digest else None, "actor": event.actor, "at": event.at}
            for event in events
        ]
    }


async def user_add(users: Users, arguments: Arguments, _: Progress) -> object:
    """Add or replace the user ``name`` with ``password``, ``role`` and ``prefixes``; returns it without its hash."""
    name, password, role = _text(arguments, "name"), _text(arguments, "password"), _text(arguments, "role")
    prefixes = arguments.get("prefixes", [])
    if role not in set(Role):
        raise ConfigInvalid(f"role is {role!r}: write {', '.join(Role)}")
    if not (isinstance(prefixes, list) and all(isinstance(prefix, str) for prefix in prefixes)):
        raise ConfigInvalid(f"prefixes is {prefixes!r}: give a list of repositories")
    put = users.add if users.get(name) is None else users.replace
    return _shown(await asyncio.to_thread(put, name, password, Role(role), prefixes))


async def user_list(users: Users, arguments: Arguments, _: Progress) -> object:
    """One page of users by name, after the name ``after``; ``next`` is None on the last page."""
    after = _text(arguments, "after", "")
    page: list[Mapping[str, object]] = []
    length = 0
    for user in users.list():
        if after is not None and user.name <= after:
            continue
        if length >= USERS_PAGE_BYTES:
            return {"users": page, "next": page[-1]["name"]}
        page.append(_shown(user))
        length += len(json.dumps(page[-1]))
    return {"users": page, "next": None}


async def user_remove(users: Users, arguments: Arguments, _: Progress) -> object:
    """Remove the user ``name``; raises ConfigInvalid when there is none."""
    name = _text(arguments, "name")
    await asyncio.to_thread(users.remove, name)
    return {"name": name}


def _shown(user: User) -> Mapping[str, object]:
    return {
        "name": user.name,
        "role": user.role.value,
        "prefixes": list(user.prefixes),
        "created_at": user.created_at.timestamp(),
    }


async def stoppable(work: Callable[[Progress], T], progress: Progress) -> T:
    """Run blocking work in a thread. When the caller goes away, the work ends where it next tells its progress."""
    stopped = threading.Event()

    def told(value: object) -> None:
        if stopped.is_set():
            raise Unavailable("the command was broken off")
        progress(value)

    running = asyncio.ensure_future(asyncio.to_thread(work, told))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        # The store must not close below the work, so wait for it.
        await asyncio.gather(running, return_exceptions=True)
        raise


_ALL_TAGS = """
SELECT r.name, t.name, t.digest, t.updated_at FROM repositories AS r JOIN tags AS t ON t.repository = r.id
WHERE r.name >= :repository AND (r.name > :repository OR t.name > :tag) ORDER BY r.name, t.name LIMIT :limit
"""
_TAGS_OF_ONE = """
SELECT :repository, name, digest, updated_at FROM tags
WHERE repository = :number AND name > :tag ORDER BY name LIMIT :limit
"""


def _page_of_tags(connection: sqlite3.Connection, one: Repository | None, after: tuple[str, str]) -> list[Any]:
    """Rows of repository, tag, digest and time."""
    place: dict[str, object] = {"repository": after[0], "tag": after[1], "limit": TAGS_PER_PAGE}
    if one is None:
        return connection.execute(_ALL_TAGS, place).fetchall()
    number = repository_id(connection, one)
    if number is None:
        raise NameUnknown(f"repository {one} does not exist: sluice tags without a name lists all")
    return connection.execute(_TAGS_OF_ONE, {**place, "repository": one, "number": number}).fetchall()


_REQUIRED = object()


def _text(arguments: Arguments, name: str, default: Any = _REQUIRED) -> Any:
    value = arguments.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, str):
        raise ConfigInvalid(f"{name} is {value!r}: give text")
    return value


def _switch(arguments: Arguments, name: str) -> bool:
    value = arguments.get(name, False)
    if not isinstance(value, bool):
        raise ConfigInvalid(f"{name} is {value!r}: give true or false")
    return value
