"""One authority of a cluster over its generations, in a directory: which there are, which signs, what they have signed.

``cluster`` has one for each kind of certificate; ``rotation`` says what may happen to it. Every file is replaced as a
whole, and ``state.json`` is what counts: a crash at any instant leaves the state before or after, and what else belongs
to it is put right by the next call that changes anything. Layout: ``<n>.crt`` and ``<n>.key`` for generation n,
``bundle.crt`` (what to trust now, for people and servers), ``issued/<n>/<name>.crt``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from pydantic import ValidationError

from sluice.config.section import Section
from sluice.errors import ConfigInvalid
from sluice.pki.authority import (
    PEM_BYTES_MAX,
    Authority,
    certificate_pem,
    fingerprint,
    load_authority,
    open_authority,
)
from sluice.pki.durable import PUBLIC_MODE, make_directory, read_bounded, write_durably
from sluice.pki.rotation import Rotation, Stage, Step

STATE_BYTES_MAX = 64 * 1024
_GENERATION = re.compile(r"([1-9][0-9]{0,8})\.(?:crt|key)")


class _State(Section):
    """``state.json``. ``fingerprints`` (SHA-256 of the DER) by generation, so that no file takes another's place."""

    version: int = 1
    stage: Stage
    old: int
    new: int | None
    fingerprints: Mapping[int, str]

    def rotation(self) -> Rotation:
        return Rotation(self.stage, self.old, self.new)


@dataclass(frozen=True, slots=True)
class Entry:
    """A certificate that has been issued and may be in use."""

    generation: int
    name: str
    certificate: x509.Certificate


class Lineage:
    """``title`` is what its authorities are called, before the generation's number."""

    def __init__(self, directory: Path, title: str) -> None:
        self.directory = directory
        self._title = title

    @property
    def bundle_path(self) -> Path:
        """The file with what is to be trusted now."""
        return self.directory / "bundle.crt"

    def exists(self) -> bool:
        """Whether there is a state to read."""
        return (self.directory / "state.json").exists()

    def create(self, now: datetime) -> None:
        """Make the first generation where nothing is there yet; idempotent. Raises ConfigInvalid or StorageFull."""
        if not self.exists():
            make_directory(self.directory)
            later = sorted(generation for generation in self._generations() if generation != 1)
            if later:
                raise ConfigInvalid(
                    f"{self.directory} has generation {later[0]} of its CA and no state.json; restore it from a backup"
                )
            self._write(Rotation(), {1: fingerprint(self._open(1, now).certificate)})
        self.settle()

    def rotation(self) -> Rotation:
        """Where it stands. Raises ConfigInvalid where that cannot be read."""
        return self._state().rotation()

    def signer(self, now: datetime) -> Authority:
        """The authority that signs now; raises ConfigInvalid where it is damaged or over."""
        state = self._state()
        generation = state.rotation().signer
        found = load_authority(self.directory, str(generation), now)
        if found is None or fingerprint(found.certificate) != state.fingerprints.get(generation):
            raise self._missing(generation)
        return found

    def trusted(self) -> Mapping[int, x509.Certificate]:
        """The certificates that whoever verifies is to trust, by generation; raises ConfigInvalid."""
        state = self._state()
        return {one: self._certificate(one, state) for one in state.rotation().trusted}

    def bundle(self) -> str:
        """The same as PEM."""
        return "".join(certificate_pem(one).decode() for one in self.trusted().values())

    def take(self, step: Step, now: datetime) -> Rotation:
        """Take a step, durably; nothing changes where it has been taken. Raises ConfigInvalid or StorageFull."""
        state = self._state()
        before, after = state.rotation(), state.rotation().after(step)
        if after != before:
            known = dict(state.fingerprints)
            for generation in after.trusted:
                if generation not in known:  # made before the state says so, or found where a crash has left it
                    known[generation] = fingerprint(self._open(generation, now).certificate)
            self._write(after, {one: known[one] for one in after.trusted})
        self.settle()
        return after

    def settle(self) -> None:
        """Bring what follows from the state in line with it, after a step or a crash in the middle of one."""
        bundle = self.bundle().encode()
        if read_bounded(self.bundle_path, PEM_BYTES_MAX) != bundle:
            write_durably(self.bundle_path, bundle, mode=PUBLIC_MODE)
        for left in self.directory.glob(".*.tmp"):  # of a write that was killed; nobody else writes now
            left.unlink()
        oldest = self.rotation().old
        for generation in self._generations():
            if generation < oldest:
                (self.directory / f"{generation}.key").unlink(missing_ok=True)
                (self.directory / f"{generation}.crt").unlink(missing_ok=True)
                shutil.rmtree(self.directory / "issued" / str(generation), ignore_errors=True)

    def record(self, generation: int, name: str, certificate: bytes) -> None:
        """Remember that this certificate (PEM) may be in use from now on; before anybody has it."""
        path = self._issued(generation, name)
        make_directory(path.parent.parent)
        make_directory(path.parent)
        write_durably(path, certificate, mode=PUBLIC_MODE)

    def forget(self, name: str, below: int | None = None) -> bool:
        """Take it that no certificate of this name is in use any more: of generations ``below``, or none at all."""
        generations = [one for one in self._issued_generations() if below is None or one < below]
        paths = [path for one in generations if (path := self._issued(one, name)).exists()]
        for path in paths:
            path.unlink()
        return bool(paths)

    def entries(self) -> Iterator[Entry]:
        """Everything that may be in use, the oldest generation first; raises ConfigInvalid over a damaged file."""
        for generation in self._issued_generations():
            for path in sorted((self.directory / "issued" / str(generation)).glob("[!.]*.crt")):
                yield Entry(generation, path.name.removesuffix(".crt"), _parse(path, path.read_bytes()))

    def _issued(self, generation: int, name: str) -> Path:
        return self.directory / "issued" / str(generation) / f"{name}.crt"

    def _issued_generations(self) -> list[int]:
        issued = self.directory / "issued"
        return sorted(int(one.name) for one in issued.iterdir() if one.name.isdigit()) if issued.exists() else []

    def _generations(self) -> set[int]:
        return {int(found[1]) for one in self.directory.iterdir() if (found := _GENERATION.fullmatch(one.name))}

    def _open(self, generation: int, now: datetime) -> Authority:
        return open_authority(self.directory, str(generation), f"{self._title} {generation}", now)

    def _certificate(self, generation: int, state: _State) -> x509.Certificate:
        path = self.directory / f"{generation}.crt"
        pem = read_bounded(path, PEM_BYTES_MAX)
        certificate = None if pem is None else _parse(path, pem)
        if certificate is None or fingerprint(certificate) != state.fingerprints.get(generation):
            raise self._missing(generation)
        return certificate

    def _missing(self, generation: int) -> ConfigInvalid:
        return ConfigInvalid(
            f"{self.directory / f'{generation}.crt'} is not the CA that state.json names; restore it from a backup"
        )

    def _write(self, rotation: Rotation, fingerprints: Mapping[int, str]) -> None:
        state = _State(stage=rotation.stage, old=rotation.old, new=rotation.new, fingerprints=fingerprints)
        write_durably(self.directory / "state.json", state.model_dump_json(indent=1).encode() + b"\n")

    def _state(self) -> _State:
        path = self.directory / "state.json"
        found = read_bounded(path, STATE_BYTES_MAX)
        if found is None:
            raise ConfigInvalid(f"{path} does not exist; make the CAs with `sluice pki init`, or name their directory")
        try:
            state = _State.model_validate_json(found)
            state.rotation()
        except (ValidationError, ValueError) as error:
            raise ConfigInvalid(f"{path} is damaged ({str(error).splitlines()[0]}); restore it from a backup") from None
        return state


def _parse(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigInvalid(f"{path} is no PEM certificate ({error}); restore it from a backup") from error
