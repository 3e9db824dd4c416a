"""The programs that files of a node belong to, as ``execute`` speaks to them: today HAProxy.

Where static pods run the balancer, the kubelet starts and stops it. What is done here then is judging its configuration
if HAProxy is installed beside it, and telling the one that runs to take it over.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sluice.cluster.layout import NodeLayout
from sluice.node.balancer import RUN_NAME
from sluice.node.execute import NoPrograms
from sluice.node.haproxy import PROGRAM, Balancer, check_config
from sluice.node.haproxy_pod import PodBalancer

DRAIN_S = 60.0
"""How long a balancer that nobody is sent to any more may finish its streams. What is cut then ends by FIN, and a
runtime goes on at the next host."""


class LeftPrograms(NoPrograms):
    """Those of a node whose layout is lost: what runs can be ended, for its directory says which it is."""

    def __init__(self, state: Path) -> None:
        self._balancer = Balancer(Path(), state / RUN_NAME)

    def stop(self, program: str) -> None:
        """Once its streams have ended."""
        self._balancer.stop(DRAIN_S)


class NodePrograms:
    """Those of one node. ``prefix`` goes before the command that starts one (``ip netns exec NAME``).

    ``runs_balancer``: the layout has one, and nobody else starts it. ``tells_balancer``: it has one that the kubelet
    starts.
    """

    def __init__(self, layout: NodeLayout, prefix: Sequence[str] = ()) -> None:
        self._balancer = Balancer.of(layout, prefix)
        self._runs = layout.runner == "agent"
        self._pod = PodBalancer(self._balancer)
        self.runs_balancer = self._runs and "balancer" in layout.sources
        self.tells_balancer = not self._runs and "balancer" in layout.sources

    @property
    def ended_hung(self) -> bool:
        """Whether the balancer answered nothing and was killed, to be started anew."""
        return self._balancer.hung

    def check(self, program: str, staged: Path) -> None:
        """Raises ConfigInvalid with HAProxy's own words."""
        if self._runs or shutil.which(PROGRAM) is not None:
            check_config(staged.read_bytes())

    def reload(self, program: str) -> None:
        """Raises ConfigInvalid where HAProxy does not take it over; it goes on with the one before then."""
        if self.runs_balancer:
            self._balancer.ensure()
        elif self.tells_balancer:
            self._pod.take_over()

    def stop(self, program: str) -> None:
        """Once its streams have ended."""
        self._balancer.stop(DRAIN_S)

    def settle(self) -> bool:
        """Whatever was done to it meanwhile, have it run where the layout says so, on what was applied; whether
        something had to be done for that.

        Raises ConfigInvalid where it does not take it over.
        """
        if self.runs_balancer:
            return self._balancer.ensure() != "unchanged"
        self._balancer.stop(DRAIN_S)  # one that an agent started before the kubelet did
        return self.tells_balancer and self._pod.settle() == "reloaded"
