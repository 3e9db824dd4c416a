"""Who may use the registry: names, password hashes, roles and prefixes, kept in ``<data>/users.json``.

``passwords`` compares against the hashes here, ``access`` turns a user into a principal, ``server.operations`` adds
and removes. ``revision`` moves with every change, so that whoever remembers a decision can tell that it is stale; a
change made to the file by another process (``sluice user add`` beside a stopped or running server) counts as one.
Writers hash and fsync: they block, and belong in a thread.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import bcrypt

from sluice.errors import ConfigInvalid, NameInvalid, SluiceError
from sluice.oci.reference import parse_repository
from sluice.pki.durable import read_bounded, write_durably

FILE_NAME = "users.json"
SCHEMA_VERSION = 1
FILE_BYTES_MAX = 16 * 1024 * 1024
USERS_MAX = 10_000
PREFIXES_MAX = 100
NAME_LENGTH_MAX = 128
RECHECK_S = 1.0
PASSWORD_BYTES_MAX = 1024
BCRYPT_BYTES_MAX = 72
COST_DEFAULT = 12
COST_MIN = 4
COST_MAX = 16
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)

log = logging.getLogger(__name__)


class Role(StrEnum):
    """What a user is for; ``access`` says what each may do."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class User:
    """One user. ``prefixes`` limits to repositories at or below them, by segment; empty means everywhere."""

    name: str
    password_hash: str
    role: Role
    prefixes: tuple[str, ...]
    created_at: datetime

    @property
    def fingerprint(self) -> str:
        """24 hexadecimal digits that change with the password, the role or the prefixes; shown inside tokens."""
        record = json.dumps([self.password_hash, self.role, self.prefixes])
        return sha256(record.encode()).hexdigest()[:24]


class Users:
    """The users of one data directory. Reading is cheap and for the event loop; writing blocks. Thread-safe."""

    def __init__(self, data: Path, *, cost: int = COST_DEFAULT, clock: Callable[[], float] = time.monotonic) -> None:
        """Read ``<data>/users.json``; no file means no users. ``clock`` counts seconds. Raises ConfigInvalid."""
        self.path = data / FILE_NAME
        self.revision = 0
        self.cost = cost
        self._clock = clock
        self._mutex = threading.RLock()
        self._stamp = _stamp(self.path)
        self._users = _read(self.path)
        self._checked = clock()

    def __len__(self) -> int:
        return len(self._users)

    def refresh(self) -> None:
        """Read the file anew when another process replaced it; looks at most once in ``RECHECK_S`` seconds.

        A file that is gone or damaged leaves the users as they were: taking it for "no users" would open a registry
        that was closed. It is logged once.
        """
        now = self._clock()
        if 0 <= now - self._checked < RECHECK_S:
            return
        self._checked = now
        if _stamp(self.path) != self._stamp:
            self._reload()

    def get(self, name: str) -> User | None:
        """The user, or None."""
        self.refresh()
        return self._users.get(name)

    def list(self) -> tuple[User, ...]:
        """All users by name."""
        self.refresh()
        return tuple(self._users[name] for name in sorted(self._users))

    def add(self, name: str, password: str, role: Role, prefixes: Sequence[str] = ()) -> User:
        """Create a user. Raises ConfigInvalid when it exists or a value is wrong, StorageFull."""
        user = self._made(name, password, role, prefixes)
        with self._changing() as users:
            if name in users:
                raise ConfigInvalid(f"user {name!r} exists already; remove it first, or replace it")
            if len(users) >= USERS_MAX:
                raise ConfigInvalid(f"there are {USERS_MAX} users already; remove one first")
            users[name] = user
        return user

    def replace(self, name: str, password: str, role: Role, prefixes: Sequence[str] = ()) -> User:
        """Give an existing user a new password, role and prefixes. Raises ConfigInvalid, StorageFull."""
        user = self._made(name, password, role, prefixes)
        with self._changing() as users:
            _require(users, name)
            users[name] = user
        return user

    def remove(self, name: str) -> None:
        """Take a user away; its sessions end at once. Raises ConfigInvalid when there is none, StorageFull."""
        with self._changing() as users:
            _require(users, name)
            del users[name]

    def reload(self) -> None:
        """Read the file anew at once (SIGHUP); one that is gone or damaged leaves the users as they were."""
        self._reload()

    def _made(self, name: str, password: str, role: Role, prefixes: Sequence[str]) -> User:
        checked = _check_prefixes(role, prefixes)
        created_at = datetime.now(UTC).replace(microsecond=0)
        return User(_check_name(name), hash_password(password, self.cost), role, checked, created_at)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, User]]:
        """The newest users, to be changed in place; written and published when the block ends well."""
        with self._mutex, _locked(self.path):
            users = dict(_read(self.path))
            if self._users and not self.path.exists():
                raise ConfigInvalid(f"{self.path} is gone; put it back, or stop the server to start without users")
            yield users
            write_durably(self.path, _render(users))
            self._publish(_stamp(self.path), MappingProxyType(users))

    def _reload(self) -> None:
        if not self._mutex.acquire(blocking=False):
            return  # a writer is at work: it publishes what it wrote, and the event loop does not wait for its disk
        try:
            self._read_anew()
        finally:
            self._mutex.release()

    def _read_anew(self) -> None:
        stamp = _stamp(self.path)
        try:
            users = _read(self.path)
            if stamp is None and self._users:
                raise ConfigInvalid(f"{self.path} is gone; put it back, or restart to go on without users")
        except SluiceError as error:
            log.error("users are kept as they were: %s", error)
            self._stamp = stamp
            return
        self._publish(stamp, users)

    def _publish(self, stamp: tuple[int, int, int] | None, users: Mapping[str, User]) -> None:
        self._stamp = stamp
        self._users = users
        self.revision += 1  # last: who sees the new revision also sees the new users


def hash_password(password: str, cost: int = COST_DEFAULT) -> str:
    """The bcrypt hash (``$2b$…``) of a new password; takes about 0.25 s at cost 12. Raises ConfigInvalid."""
    material = bcrypt_input(password)
    if not password or material is None:
        raise ConfigInvalid(f"password is empty or too long; give 1 to {PASSWORD_BYTES_MAX} bytes")
    if not password.isprintable():
        raise ConfigInvalid("password has a control character (a line break?); give printable characters only")
    return bcrypt.hashpw(material, bcrypt.gensalt(cost)).decode()


def bcrypt_input(password: str) -> bytes | None:
    """What is hashed: the password, or its SHA-256 in base64 where it has more than the 72 bytes that bcrypt takes.

    None for one of more than ``PASSWORD_BYTES_MAX`` bytes, which no user can have.
    """
    raw = password.encode("utf-8", "surrogatepass")
    if len(raw) > PASSWORD_BYTES_MAX:
        return None
    return raw if len(raw) <= BCRYPT_BYTES_MAX else b64encode(sha256(raw).digest())


def password_matches(material: bytes, password_hash: bytes) -> bool:
    """Whether ``material`` (from ``bcrypt_input``) hashes to ``password_hash``; blocks for as long as hashing does."""
    try:
        return bcrypt.checkpw(material, password_hash)
    except ValueError:  # bcrypt's own refusal of a hash or password is a mismatch, never a failed request
        return False


def hash_of_nobody(cost: int = COST_DEFAULT) -> bytes:
    """A well-formed hash to compare with where there is no user: it takes as long, and cost nothing to make."""
    return bcrypt.gensalt(cost) + b"." * 31


def _require(users: Mapping[str, User], name: str) -> None:
    if name not in users:
        raise ConfigInvalid(f"there is no user {name[:NAME_LENGTH_MAX]!r}; `sluice user list` shows those that exist")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs after any replacement: inode, modification time (ns) and size; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing the users between our reading and our writing."""
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be locked: {error.strerror}; give Sluice write access to it") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _render(users: Mapping[str, User]) -> bytes:
    records = [
        {
            "name": user.name,
            "password_hash": user.password_hash,
            "role": user.role.value,
            "prefixes": list(user.prefixes),
            "created_at": user.created_at.isoformat(),
        }
        for _, user in sorted(users.items())
    ]
    return json.dumps({"version": SCHEMA_VERSION, "users": records}, indent=2).encode() + b"\n"


def _read(path: Path) -> Mapping[str, User]:
    content = read_bounded(path, FILE_BYTES_MAX)
    if content is None:
        return MappingProxyType({})
    try:
        return MappingProxyType(_parse(json.loads(content)))
    except (ValueError, RecursionError, ConfigInvalid) as error:
        raise ConfigInvalid(f"{path} is damaged: {error}; restore it from a backup, or move it away") from error


def _parse(document: object) -> dict[str, User]:
    if not isinstance(document, dict):
        raise ConfigInvalid("it is not a JSON object")
    if document.get("version") != SCHEMA_VERSION:
        raise ConfigInvalid(f"version is {document.get('version')!r}, and this Sluice knows {SCHEMA_VERSION}")
    records = document.get("users")
    if not isinstance(records, list) or len(records) > USERS_MAX:
        raise ConfigInvalid(f"users is not a list of at most {USERS_MAX}")
    users: dict[str, User] = {}
    for index, record in enumerate(records):
        try:
            user = _parse_user(record)
        except (ConfigInvalid, ValueError, TypeError) as error:
            raise ConfigInvalid(f"users[{index}]: {error}") from error
        if user.name in users:
            raise ConfigInvalid(f"users[{index}].name repeats {user.name!r}")
        users[user.name] = user
    return users


def _parse_user(record: object) -> User:
    if not isinstance(record, dict):
        raise ConfigInvalid("it is not an object")
    prefixes = record.get("prefixes")
    if not isinstance(prefixes, list) or not all(isinstance(prefix, str) for prefix in prefixes):
        raise ConfigInvalid("prefixes is not a list of strings")
    role = Role(_text(record, "role"))
    created_at = datetime.fromisoformat(_text(record, "created_at"))
    if created_at.tzinfo is None:
        raise ConfigInvalid("created_at has no time zone")
    password_hash = _check_hash(_text(record, "password_hash"))
    return User(_check_name(_text(record, "name")), password_hash, role, _check_prefixes(role, prefixes), created_at)


def _text(record: Mapping[str, object], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise ConfigInvalid(f"{field} is not a string")
    return value


def _check_name(name: str) -> str:
    # A colon would end the name in Basic credentials (RFC 7617 section 2); what does not print misleads in a list.
    if not 1 <= len(name) <= NAME_LENGTH_MAX or ":" in name or not name.isprintable() or name != name.strip():
        raise ConfigInvalid(
            f"user name {name[: NAME_LENGTH_MAX + 1]!r} is invalid: 1 to {NAME_LENGTH_MAX} printable characters,"
            " without colons and without spaces at the ends"
        )
    return name


def _check_hash(text: str) -> str:
    found = _HASH.fullmatch(text)
    if found is None or not COST_MIN <= int(found[1]) <= COST_MAX:
        raise ConfigInvalid(f"password_hash is not bcrypt with a cost of {COST_MIN} to {COST_MAX}")
    return text


def _check_prefixes(role: Role, prefixes: Sequence[str]) -> tuple[str, ...]:
    if len(prefixes) > PREFIXES_MAX:
        raise ConfigInvalid(f"prefixes has {len(prefixes)} entries; at most {PREFIXES_MAX} are allowed")
    if prefixes and role is Role.ADMIN:
        raise ConfigInvalid("prefixes cannot limit the role admin; choose write or read, or leave them out")
    try:
        return tuple(sorted({parse_repository(prefix) for prefix in prefixes}))
    except NameInvalid as error:
        raise ConfigInvalid(f"prefixes: {error}; give repository names such as 'team' or 'team/app'") from error
