"""How one authority takes the place of another, step by step, without anybody being refused in between. PURE.

``cluster`` keeps a ``Rotation`` for each authority on disk and asks here what it means and what may come next.

```
stable(1) --trust--> trusting(1, 2) --sign--> replacing(1, 2) --retire--> stable(2)
 trusts 1              trusts 1 and 2           trusts 1 and 2             trusts 2
 1 signs               1 signs                  2 signs                    2 signs
```

Those who verify must have both authorities before anything is signed by the new one, and everything that the old one
has signed must be replaced before it is trusted no more. Trust itself can be handed out at any time and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sluice.errors import ConfigInvalid


class Stage(StrEnum):
    """Where a rotation stands."""

    STABLE = "stable"
    TRUSTING = "trusting"
    REPLACING = "replacing"


class Step(StrEnum):
    """What is done next, in this order."""

    TRUST = "trust"
    SIGN = "sign"
    RETIRE = "retire"


_TAKEN_IN = {Step.TRUST: Stage.STABLE, Step.SIGN: Stage.TRUSTING, Step.RETIRE: Stage.REPLACING}
_NEXT = {stage: step for step, stage in _TAKEN_IN.items()}
_BEFORE = {Step.SIGN: Stage.STABLE, Step.RETIRE: Stage.TRUSTING}
"""The stage in which a step is too early. In the one that is left it has been taken already."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Generations of one authority, counted from 1. ``new`` is None where nothing is being rotated."""

    stage: Stage = Stage.STABLE
    old: int = 1
    new: int | None = None

    def __post_init__(self) -> None:
        if (self.new is None) != (self.stage is Stage.STABLE) or self.old < 1 or (self.new or self.old + 1) <= self.old:
            raise ValueError(f"no rotation is {self.stage} with generations {self.old} and {self.new}")

    @property
    def trusted(self) -> tuple[int, ...]:
        """The generations that whoever verifies is to trust."""
        return (self.old,) if self.new is None else (self.old, self.new)

    @property
    def signer(self) -> int:
        """The generation that signs now; what another one signed is due to be replaced."""
        return self.new if self.new is not None and self.stage is Stage.REPLACING else self.old

    @property
    def next_step(self) -> Step:
        """The only step that leads on from here."""
        return _NEXT[self.stage]

    def after(self, step: Step) -> Rotation:
        """What it is once ``step`` has been taken; itself where that has happened already.

        Raises ConfigInvalid where another step must come first. Whether it is safe is for ``hindrances`` to say.
        """
        if self.stage is _BEFORE.get(step):
            raise ConfigInvalid(f"step is {step.value!r}, too early while {self.stage}: take {self.next_step} first")
        if self.stage is not _TAKEN_IN[step]:
            return self
        match step:
            case Step.TRUST:
                return Rotation(Stage.TRUSTING, self.old, self.old + 1)
            case Step.SIGN:
                return Rotation(Stage.REPLACING, self.old, self.new)
            case Step.RETIRE:
                assert self.new is not None
                return Rotation(Stage.STABLE, self.new)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about those who verify (the generations that each one trusts) and those who show a certificate (the
    generation that signed it; None: none of ours). Both by name; whoever is not named is nobody's concern."""

    trusting: Mapping[str, frozenset[int]] = field(default_factory=dict)
    shown: Mapping[str, int | None] = field(default_factory=dict)


def hindrances(rotation: Rotation, step: Step, evidence: Evidence) -> tuple[str, ...]:
    """Who would be refused, or would refuse others, if ``step`` were taken now. Empty: it is safe.

    A step that has been taken already is always safe to take again.
    """
    if rotation.after(step) == rotation:
        return ()
    match step:
        case Step.TRUST:
            return ()
        case Step.SIGN:
            return tuple(name for name, trusted in evidence.trusting.items() if rotation.new not in trusted)
        case Step.RETIRE:
            return tuple(name for name, generation in evidence.shown.items() if generation != rotation.new)
