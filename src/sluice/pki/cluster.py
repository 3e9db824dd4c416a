"""The authorities of a cluster, one for each kind of certificate, and everything that is done with them.

Servers, nodes, peers and operators have an authority each: none of their certificates is good for anything else.
Whoever runs the cluster keeps the directory; nodes and replicas get nothing but certificates, their keys and the
bundles that they are to trust. All values that leave here are plain: PEM as text, and times.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509

from sluice.errors import ConfigInvalid, RotationUnsafe
from sluice.pki.authority import fingerprint
from sluice.pki.durable import make_directory
from sluice.pki.leaf import Leaf, is_due, is_signed_by, issue_client, issue_server, parse_names, renew_at
from sluice.pki.lineage import Lineage
from sluice.pki.rotation import Evidence, Rotation, Step, hindrances

VIRTUAL_HOST = "registry.sluice.internal"
SERVER_NAMES = ("localhost", "127.0.0.1", "::1")
"""What every replica's certificate carries, beside its addresses and the virtual address's host."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?", re.ASCII)
_NAMED_IN_ERROR = 5


class Purpose(StrEnum):
    """What an authority signs for."""

    SERVERS = "servers"
    NODES = "nodes"
    PEERS = "peers"
    OPERATORS = "operators"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate (PEM: itself, then its CA) and its key (PEM) for ``name``, to be renewed from ``renew_at`` on."""

    name: str
    certificate: str
    key: str = field(repr=False)
    not_after: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """A CA (``name`` is None) or a certificate that may be in use, as ``status`` shows it."""

    purpose: Purpose
    generation: int
    name: str | None
    not_after: datetime
    renew_at: datetime
    due: bool


class ClusterPki:
    """The authorities in ``directory``. Raises ConfigInvalid where they have not been made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lineages = _lineages(directory)
        missing = next((one for one, lineage in self._lineages.items() if not lineage.exists()), None)
        if missing is not None:
            raise ConfigInvalid(
                f"directory {directory} has no CA for {missing}; make them with `sluice pki init`, or name another"
            )

    @classmethod
    def create(cls, directory: Path, now: datetime) -> ClusterPki:
        """Make what is not there yet; idempotent, also after a crash. ``now`` is UTC and aware, here and everywhere.

        Raises ConfigInvalid (damaged or unwritable) or StorageFull.
        """
        make_directory(directory)
        with _locked(directory):
            for lineage in _lineages(directory).values():
                lineage.create(now)
        return cls(directory)

    def rotation(self, purpose: Purpose) -> Rotation:
        """Where the rotation of this authority stands."""
        return self._lineages[purpose].rotation()

    def bundle(self, purpose: Purpose) -> str:
        """The CAs (PEM) that whoever verifies such certificates is to trust now: two in the middle of a rotation."""
        return self._lineages[purpose].bundle()

    def fingerprints(self, purpose: Purpose) -> tuple[str, ...]:
        """The SHA-256 of each of them in hexadecimal, the signer of longest standing first. A replica that has them in
        force shows them in the metric ``sluice_door_authority_not_after_seconds``."""
        return tuple(fingerprint(one) for one in self._lineages[purpose].trusted().values())

    def bundle_path(self, purpose: Purpose) -> Path:
        """A file that has them always, for a server that watches it."""
        return self._lineages[purpose].bundle_path

    def issue_server(
        self, name: str, addresses: Sequence[str], now: datetime, virtual_host: str = VIRTUAL_HOST
    ) -> Issued:
        """A certificate for the replica ``name`` at ``addresses`` (IP addresses or host names).

        Raises ConfigInvalid for a name or address that no certificate can carry.
        """
        _check_name(name)
        names = parse_names(server_names(addresses, virtual_host), "address")
        with self._changing(Purpose.SERVERS) as lineage:
            return _recorded(lineage, name, issue_server(lineage.signer(now), names, now, name))

    def issue_client(self, purpose: Purpose, name: str, now: datetime) -> Issued:
        """A certificate for a node, a peer or an operator called ``name``; raises ConfigInvalid."""
        _check_name(name)
        if purpose is Purpose.SERVERS:
            raise ConfigInvalid(f"{purpose} show no client certificate; issue one for nodes, peers or operators")
        with self._changing(purpose) as lineage:
            return _recorded(lineage, name, issue_client(lineage.signer(now), name, now))

    def delivered(self, purpose: Purpose, name: str) -> None:
        """The newest certificate of ``name`` is in use: those of generations before it are not, any more."""
        with self._changing(purpose) as lineage:
            newest = max((one.generation for one in lineage.entries() if one.name == name), default=0)
            lineage.forget(name, newest)

    def forget(self, purpose: Purpose, name: str) -> None:
        """``name`` has gone for good and holds up no rotation. Raises ConfigInvalid where there is none such."""
        with self._changing(purpose) as lineage:
            if not lineage.forget(name):
                raise ConfigInvalid(f"name {name!r} has no certificate among {purpose}; `sluice pki status` lists them")

    def is_due(self, purpose: Purpose, certificate: str, now: datetime, names: Collection[str] = ()) -> bool:
        """Whether a certificate (PEM) that is in use must be issued anew: less than a third of its life is left, its
        signer has been replaced, or ``names`` (``server_names``, for a server) are not those it carries."""
        authority = self._lineages[purpose].signer(now)
        wanted = parse_names([*names], "address") if names else ()
        return is_due(_first(certificate), authority, wanted, now)

    def evidence(
        self, purpose: Purpose, now: datetime, trusting: Mapping[str, str], shown: Mapping[str, str]
    ) -> Evidence:
        """What ``hindrances`` decides by. ``trusting``: by verifier, the bundle (PEM) that it is known to use.

        ``shown``: by name, the certificate (PEM) that it is known to use; for all other names, what was issued counts.
        """
        lineage = self._lineages[purpose]
        known = lineage.trusted()
        used: dict[str, int | None] = {}
        for entry in lineage.entries():
            if entry.certificate.not_valid_after_utc > now:
                used.setdefault(entry.name, entry.generation)  # the oldest comes first, and is what holds things up
        for name, pem in shown.items():
            certificate = _first(pem)
            used[name] = next((one for one, ca in known.items() if is_signed_by(certificate, ca)), None)
        bundles = {name: x509.load_pem_x509_certificates(pem.encode()) for name, pem in trusting.items()}
        trusted = {
            name: frozenset(one for one, ca in known.items() if ca in bundle) for name, bundle in bundles.items()
        }
        return Evidence(trusted, used)

    def take(
        self,
        purpose: Purpose,
        step: Step,
        now: datetime,
        trusting: Mapping[str, str] | None = None,
        shown: Mapping[str, str] | None = None,
    ) -> Rotation:
        """Take a step of a rotation, durably; nothing changes where it has been taken already.

        ``trusting`` and ``shown`` as for ``evidence``. Without ``trusting`` the caller vouches that the bundle has
        reached everybody. Raises RotationUnsafe where somebody would be refused, ConfigInvalid for a step too early.
        """
        with self._changing(purpose) as lineage:
            found = self.evidence(purpose, now, trusting or {}, shown or {})
            behind = hindrances(lineage.rotation(), step, found)
            if behind:
                raise _unsafe(purpose, step, behind)
            return lineage.take(step, now)

    def held(self, now: datetime) -> Iterator[Held]:
        """Everything there is: the CAs and then the certificates of each purpose. Raises ConfigInvalid over damage."""
        for purpose, lineage in self._lineages.items():
            signer = lineage.rotation().signer
            for generation, ca in lineage.trusted().items():
                due = now >= renew_at(ca) and generation == max(lineage.trusted())
                yield Held(purpose, generation, None, ca.not_valid_after_utc, renew_at(ca), due)
            for entry in lineage.entries():
                leaf = entry.certificate
                due = now >= renew_at(leaf) or entry.generation != signer
                yield Held(purpose, entry.generation, entry.name, leaf.not_valid_after_utc, renew_at(leaf), due)

    @contextmanager
    def _changing(self, purpose: Purpose) -> Iterator[Lineage]:
        with _locked(self.directory):
            lineage = self._lineages[purpose]
            lineage.settle()
            yield lineage


def server_names(addresses: Sequence[str], virtual_host: str = VIRTUAL_HOST) -> tuple[str, ...]:
    """The names that the certificate of a replica at ``addresses`` carries."""
    return tuple(dict.fromkeys((*addresses, virtual_host, *SERVER_NAMES)))


def _lineages(directory: Path) -> dict[Purpose, Lineage]:
    return {purpose: Lineage(directory / purpose, f"Sluice {purpose} CA") for purpose in Purpose}


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Only one process changes a directory at a time. The lock ends with its holder, whatever ends that (flock(2))."""
    with (directory / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recorded(lineage: Lineage, name: str, leaf: Leaf) -> Issued:
    certificate = x509.load_pem_x509_certificate(leaf.chain_pem)
    lineage.record(lineage.rotation().signer, name, leaf.chain_pem)
    return Issued(name, leaf.chain_pem.decode(), leaf.key_pem.decode(), leaf.not_after, renew_at(certificate))


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ConfigInvalid(
            f"name is {name[:100]!r}: write up to 64 letters, digits and . _ @ - (the first and last a letter or digit)"
        )


def _first(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise ConfigInvalid(f"the certificate is not PEM ({error}); give the file that was issued") from error


def _unsafe(purpose: Purpose, step: Step, behind: Sequence[str]) -> RotationUnsafe:
    more = f" and {len(behind) - _NAMED_IN_ERROR} more" if len(behind) > _NAMED_IN_ERROR else ""
    who = ", ".join(behind[:_NAMED_IN_ERROR]) + more
    do = "trust the new CA: give them the bundle" if step is Step.SIGN else "show a certificate that the new CA signed"
    return RotationUnsafe(f"step {step.value!r} for {purpose} is not safe yet: {who} must first {do}")
