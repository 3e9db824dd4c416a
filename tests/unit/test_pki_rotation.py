"""The rotation of an authority: no order of events in which somebody who keeps to it is refused."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluice.errors import ConfigInvalid
from sluice.pki.rotation import Evidence, Rotation, Stage, Step, hindrances

NAMES = ("a", "b", "c")
WAY = (Rotation(), Rotation(Stage.TRUSTING, 1, 2), Rotation(Stage.REPLACING, 1, 2), Rotation(Stage.STABLE, 2))


class Cluster(RuleBasedStateMachine):
    """Verifiers and holders that get bundles and certificates at any time, and steps whenever they are safe.

    What is known lags behind what is: a verifier is told of only after it trusts, a holder after it has changed over.
    The controller crashes between deciding and acting, and takes the same step again.
    """

    @initialize()
    def begin(self) -> None:
        self.rotation = Rotation()
        self.trusting = {"a": frozenset({1})}
        self.shown = {"a": 1}
        self.known = Evidence(dict(self.trusting), dict(self.shown))

    @rule(name=st.sampled_from(NAMES))
    def hand_out_the_bundle(self, name: str) -> None:
        self.trusting[name] = frozenset(self.rotation.trusted)
        if name not in self.known.trusting:  # who is not known to be there yet is not waited for, so it is known first
            self.look()

    @rule(name=st.sampled_from(NAMES))
    def renew(self, name: str) -> None:
        self.shown[name] = self.rotation.signer
        if name not in self.known.shown:
            self.look()

    @rule()
    def look(self) -> None:
        self.known = Evidence(dict(self.trusting), dict(self.shown))

    @rule()
    def take_the_next_step(self) -> None:
        step = self.rotation.next_step
        if not hindrances(self.rotation, step, self.known):
            self.rotation = self.rotation.after(step)

    @precondition(lambda self: self.rotation.stage is not Stage.STABLE)
    @rule()
    def take_the_last_step_again(self) -> None:
        last = Step.TRUST if self.rotation.stage is Stage.TRUSTING else Step.SIGN
        assert () == hindrances(self.rotation, last, self.known)
        assert self.rotation == self.rotation.after(last)

    @invariant()
    def everybody_is_let_in(self) -> None:
        refused = [
            (who, by)
            for (who, generation), (by, trusted) in product(self.shown.items(), self.trusting.items())
            if generation not in trusted
        ]
        assert [] == refused

    @invariant()
    def the_signer_is_trusted(self) -> None:
        assert self.rotation.signer in self.rotation.trusted


Cluster.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestCluster = Cluster.TestCase


def test_every_state_leads_on() -> None:
    """Three steps lead from one generation to the next, each taken once, and each again without effect."""
    found = [Rotation()]
    for step in Step:
        assert step is found[-1].next_step
        found.append(found[-1].after(step))
        assert found[-1] == found[-1].after(step)
    assert list(WAY) == found
    assert [(1,), (1, 2), (1, 2), (2,)] == [one.trusted for one in found]
    assert [1, 1, 2, 2] == [one.signer for one in found]


@pytest.mark.parametrize(("rotation", "step"), [(WAY[0], Step.SIGN), (WAY[1], Step.RETIRE)])
def test_no_step_is_left_out(rotation: Rotation, step: Step) -> None:
    """A step before its time is refused, with the one that comes first; nothing is skipped."""
    with pytest.raises(ConfigInvalid, match=f"take {rotation.next_step} first"):
        rotation.after(step)


def test_who_stands_in_the_way_is_named() -> None:
    """Signing waits for whoever trusts the old one only; retiring for whoever shows the old one's, or a foreign one."""
    trusting = {"r1": frozenset({1}), "r2": frozenset({1, 2}), "r3": frozenset[int]()}
    shown = {"n1": 1, "n2": 2, "n3": None}
    evidence = Evidence(trusting, shown)
    assert () == hindrances(WAY[0], Step.TRUST, evidence)
    assert ("r1", "r3") == hindrances(WAY[1], Step.SIGN, evidence)
    assert ("n1", "n3") == hindrances(WAY[2], Step.RETIRE, evidence)


@pytest.mark.parametrize(
    ("stage", "old", "new"),
    [(Stage.STABLE, 1, 2), (Stage.TRUSTING, 1, None), (Stage.REPLACING, 2, 2), (Stage.STABLE, 0, None)],
)
def test_what_is_no_rotation_cannot_be_written_down(stage: Stage, old: int, new: int | None) -> None:
    """A state that no steps lead to is an error, not a guess."""
    with pytest.raises(ValueError, match="no rotation"):
        Rotation(stage, old, new)
