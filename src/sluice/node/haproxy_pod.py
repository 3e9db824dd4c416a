"""HAProxy in a static pod: the kubelet starts and stops it, and here it is told of another configuration.

The pod runs on the very file that ``apply`` writes. Its master listens in the run directory, which pod and node share:
``reload`` there has it read the file again, and a new worker takes the listening sockets over while the old one
finishes its streams. A configuration that HAProxy refuses, or cannot run on, changes nothing: the worker before serves
on, and the master counts a reload that failed (HAProxy 2.6 management guide, sections 4 and 9.4).
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Literal

from sluice.errors import ConfigInvalid
from sluice.node.balancer import MASTER_SOCKET, STATE_FILE
from sluice.node.haproxy import RELOAD_AGAIN_S, RELOAD_S, Balancer, config_digest, wait
from sluice.node.pods import BALANCER_NAME

LISTEN_S = 3.0
"""How long a worker must answer and no master listen until it is taken for one that has none."""
_RELOADS = re.compile(r"^\d+\s+master\s+(\d+) \[failed: (\d+)\]", re.ASCII | re.MULTILINE)
_LOG = f"Its log says why (crictl logs $(crictl ps -q --name {BALANCER_NAME}))"
_ANEW = f"stop its pod (crictl stopp $(crictl pods -q --name {BALANCER_NAME})), and the kubelet starts it anew"

Told = Literal["reloaded", "unchanged", "absent"]
Reloads = tuple[int, int] | None
"""How many there have been since the start, and how many of the last ones in a row failed."""


class PodBalancer:
    """The kubelet's. ``balancer`` says where its file and its directory are; it is asked here, and never started."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def take_over(self) -> Told:
        """Have it run on what the file says now. ``absent``: there is nobody who could be told, as before a pod's
        start, which reads the file by itself.

        Raises ConfigInvalid where it does not take it over, and goes on with the one before.
        """
        if not self._balancer.directory.is_dir():  # no kubelet has made it yet
            return "absent"
        with self._balancer.locked():
            wanted, runs_on = self._wanted(), self._balancer.state().config
            if runs_on == wanted:
                return "unchanged"
            # A master that executes itself anew, which it does twice for each reload, closes its socket for a moment.
            if not wait(self._listens, LISTEN_S if runs_on is not None else 0.0):
                return "absent"
            try:
                return self._reload(wanted)
            finally:  # the kubelet's next start is not to believe how replicas were now
                (self._balancer.directory / STATE_FILE).unlink(missing_ok=True)

    def settle(self) -> Told:
        """The same. Raises ConfigInvalid also where one that nobody can tell runs on something else.

        ``take_over`` bears with that: it may be the pod of a manifest which is about to be replaced.
        """
        told = self.take_over()
        if told == "absent" and self._balancer.state().config not in {None, self._wanted()}:
            raise ConfigInvalid(
                f"the balancer's pod does not run on {self._balancer.config} and cannot be told to: nobody listens on"
                f" {self._balancer.directory / MASTER_SOCKET}; {_ANEW}"
            )
        return told

    def _wanted(self) -> str:
        return config_digest(self._balancer.wanted())

    def _runs_on(self, wanted: str) -> bool:
        return self._balancer.state().config == wanted

    def _reload(self, wanted: str) -> Told:
        before = self._reloads()
        self._balancer.keep_servers()
        deadline = time.monotonic() + RELOAD_S
        while (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(OSError):  # 2.6 hangs up, and a master that has just started hears nothing: again
                self._balancer.ask("reload", MASTER_SOCKET)
            if wait(lambda: self._runs_on(wanted) or self._refuses(before), min(RELOAD_AGAIN_S, left_s)):
                break
        if self._runs_on(wanted):
            return "reloaded"
        raise ConfigInvalid(self._complaint(refused=self._refuses(before)))

    def _listens(self) -> bool:
        """Whether there is a master; without a pod there may be the socket that the last one left behind."""
        try:
            self._balancer.ask("show version", MASTER_SOCKET)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # it does not answer, but it is there
            return True
        return True

    def _refuses(self, before: Reloads) -> bool:
        """Whether a reload since ``before`` has failed."""
        after = self._reloads()
        return before is not None and after is not None and after[0] > before[0] and after[1] > 0

    def _reloads(self) -> Reloads:
        """None where it does not say."""
        try:
            found = _RELOADS.search(self._balancer.ask("show proc", MASTER_SOCKET))
        except OSError:
            return None
        return (int(found[1]), int(found[2])) if found is not None else None

    def _complaint(self, *, refused: bool) -> str:
        what = (
            f"refuses the configuration in {self._balancer.config}"
            if refused
            else f"did not take the configuration in {self._balancer.config} over within {RELOAD_S:g} s"
        )
        remedy = f"is the port taken? {_LOG}" if refused else _ANEW
        return f"HAProxy in the balancer's pod {what}, and goes on with the one before; {remedy}"
