"""Callers are let in by the upstream's word, which is remembered for a while and outlives an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from cache.scripted import APP, OTHER, POLICY, Clock, until
from sluice.cache.tenants import PROOF_S, PROOFS_MAX, Caller, Question, Tenants
from sluice.errors import (
    Denied,
    ManifestUnknown,
    NameUnknown,
    SluiceError,
    UpstreamFailed,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from sluice.oci.reference import Repository

ANN, BOB = Caller("ann", "secret"), Caller("bob", "secret")
DOWN = UpstreamUnreachable("down")


class Gate:
    """An upstream that lets in whom it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tenants = Tenants(POLICY, self.clock)
        self.answer: SluiceError | None = None
        self.asked: list[Caller | None] = []
        self.let: Sequence[Caller | None] = (ANN,)
        self.slow: dict[str, asyncio.Event] = {}
        self.missing: set[str] = set()
        self.ours: SluiceError | None = ManifestUnknown("404")

    async def ask_as_us(self, about: str) -> None:
        if self.ours is not None:
            raise self.ours

    async def ask(self, about: str, caller: Caller | None) -> None:
        self.asked.append(caller)
        await asyncio.sleep(0)
        if about in self.slow:
            await self.slow[about].wait()
        if self.answer is not None:
            raise self.answer
        if caller not in self.let:
            raise UpstreamUnauthorized("401")
        if about in self.missing:
            raise ManifestUnknown("404")

    async def enters(
        self, caller: Caller | None, repository: Repository = APP, about: str = "v1"
    ) -> type[SluiceError] | None:
        """None where the caller is let in, else the error."""
        try:
            await self.tenants.require(
                repository, caller, Question(about, partial(self.ask, about), partial(self.ask_as_us, about))
            )
        except SluiceError as error:
            return type(error)
        return None


async def test_each_caller_is_asked_about_once() -> None:
    """The upstream is asked for each caller and repository, with the caller's own credentials, and not again while its
    word is good."""
    gate = Gate()
    for _ in range(3):
        assert [None, Denied, Denied] == [await gate.enters(one) for one in (ANN, BOB, None)]
    assert [ANN, BOB, None] == gate.asked
    assert await gate.enters(ANN, OTHER) is None
    assert 4 == len(gate.asked)
    assert await gate.enters(Caller("ann", "wrong")) is Denied


async def test_its_word_ages() -> None:
    """After ``PROOF_S`` it is asked again, and a caller that it lets in no longer is out; one that was out may be in
    sooner."""
    gate = Gate()
    assert [None, Denied] == [await gate.enters(one) for one in (ANN, BOB)]
    gate.let = (BOB,)
    gate.clock.now += POLICY.negative_s
    assert [None, None] == [await gate.enters(one) for one in (ANN, BOB)]
    gate.clock.now += PROOF_S
    assert [Denied, None] == [await gate.enters(one) for one in (ANN, BOB)]


@pytest.mark.parametrize("trouble", [DOWN, UpstreamFailed("500")])
async def test_an_outage_locks_nobody_out_and_lets_nobody_in(trouble: SluiceError) -> None:
    """Who was let in last stays in for ``tag_stale_max_s``; all others get the upstream's trouble; who was put out
    stays out."""
    gate = Gate()
    assert [None, Denied] == [await gate.enters(one) for one in (ANN, BOB)]
    gate.answer = trouble
    gate.clock.now += POLICY.tag_stale_max_s - 1
    assert [None, type(trouble), type(trouble)] == [await gate.enters(one) for one in (ANN, BOB, None)]
    gate.clock.now += 1
    assert type(trouble) is await gate.enters(ANN)


async def test_a_lost_right_does_not_come_back_in_an_outage() -> None:
    """Once the upstream has refused a caller, or has hidden from him what it has for us, an outage restores nothing."""
    for answer in (UpstreamUnauthorized("401"), ManifestUnknown("404")):
        gate = Gate()
        gate.ours = None
        assert await gate.enters(ANN) is None
        gate.clock.now += PROOF_S
        gate.answer = answer
        assert await gate.enters(ANN) is not None
        gate.clock.now += PROOF_S
        gate.answer = DOWN
        assert await gate.enters(ANN) is UpstreamUnreachable


@pytest.mark.parametrize("ours", [ManifestUnknown("404"), NameUnknown("404"), DOWN, UpstreamUnauthorized("401")])
async def test_a_404_locks_nobody_out_and_lets_nobody_in(ours: SluiceError) -> None:
    """Who was let in and asks for what is not there, for us either as far as anybody knows, stays in, also when the
    upstream cannot be asked any more. Who was never let in gets the 404, and is not in."""
    gate = Gate()
    gate.ours, gate.missing, gate.let = ours, {"nope"}, (ANN, BOB)
    assert [None, ManifestUnknown] == [await gate.enters(ANN), await gate.enters(BOB, about="nope")]
    gate.clock.now += PROOF_S
    assert [None, ManifestUnknown] == [await gate.enters(one, about="nope") for one in (ANN, BOB)]
    gate.answer = DOWN
    assert [None, UpstreamUnreachable] == [await gate.enters(one) for one in (ANN, BOB)]
    gate.clock.now += POLICY.tag_stale_max_s - PROOF_S
    assert UpstreamUnreachable is await gate.enters(ANN)  # a 404 is no new proof


async def test_one_question_at_a_time() -> None:
    """Callers with the same credentials that come together share one question; others have their own."""
    gate = Gate()
    assert [None] * 5 + [Denied] * 5 == await asyncio.gather(*(gate.enters(one) for one in [ANN] * 5 + [BOB] * 5))
    assert 2 == len(gate.asked)
    await gate.tenants.close()


async def test_each_question_has_its_own_answer() -> None:
    """Two things that are wanted at the same time: that there is not the one does not keep the caller from the other,
    and who is let in for the other is in, whatever there is of the one."""
    gate = Gate()
    gate.missing, gate.slow = {"nope"}, {"nope": asyncio.Event()}
    nope = asyncio.create_task(gate.enters(ANN, about="nope"))
    await until(lambda: gate.asked)
    assert await gate.enters(ANN, about="v1") is None
    gate.slow["nope"].set()
    assert await nope is None
    assert [ANN, ANN] == gate.asked
    await gate.tenants.close()


async def test_what_is_remembered_is_bounded() -> None:
    """No more than ``PROOFS_MAX`` are remembered, and no password is."""
    gate = Gate()
    gate.let = everybody = [Caller("ann", str(number)) for number in range(PROOFS_MAX + 1)]
    for one in everybody:
        await gate.enters(one)
    assert PROOFS_MAX == len(gate.tenants._allowed)
    assert "secret" not in repr(ANN)
