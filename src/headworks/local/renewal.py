"""A policy that changes while the stack runs: the gateway takes it over, then pod after pod."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from headworks.errors import PolicyError
from headworks.local import probe
from headworks.local.processes import Child
from headworks.policy.settings import Policy

LOOK, START = 0.5, 60.0
"""Seconds between two looks at the file; and that a pod may take to start, once it has left."""


class Renewal:
    """Watches one policy file.

    policy   as it was read last
    reread   reads the file again; raises `PolicyError`
    gateway  lets the gateway take over a policy
    pods     who read it anew when they are restarted
    ready    whether a pod answers that it is ready
    say      gets a line for everything that happens
    """

    def __init__(
        self,
        file: Path,
        policy: Policy,
        *,
        reread: Callable[[], Policy],
        gateway: Callable[[Policy], None],
        pods: Sequence[Child],
        ready: Callable[[Child], Awaitable[bool]],
        say: Callable[[str], None],
    ) -> None:
        self._file, self._policy, self._reread = file, policy, reread
        self._gateway, self._pods, self._ready, self._say = gateway, pods, ready, say
        self._seen = self._look()

    async def watch(self) -> None:
        """Take over every change, until cancelled."""
        before = self._seen
        while True:
            await asyncio.sleep(LOOK)
            now = self._look()
            # Twice the same: the first half of a policy may be a policy, too.
            if now == before and now != self._seen:
                self._seen = now
                await self._take_over()
            before = now

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None  # being replaced, or gone: what runs goes on
        return found.st_mtime_ns, found.st_size

    async def _take_over(self) -> None:
        try:
            policy = self._reread()
        except PolicyError as error:
            self._say(
                f"the policy has changed, and cannot be used; the last one stays in force\n{error}"
            )
            return
        if policy == self._policy:
            return
        if list(policy.vendors) != list(self._policy.vendors):  # nothing here would fake another
            self._say("the policy names other vendors now; start the stack again to have them")
            return
        try:
            self._gateway(policy)
        except OSError as error:
            self._say(f"the gateway cannot be given the changed policy: {error.strerror or error}")
            return
        self._policy = policy
        self._say("the policy has changed: the gateway has it, and the pods get it one by one")
        for pod in self._pods:
            if not await self._restart(pod):
                self._say(
                    f"{pod.name} does not answer with the changed policy; the others keep the last one"
                )
                return
        self._say("every pod has the changed policy")

    async def _restart(self, pod: Child) -> bool:
        """Let it leave as it always does; its keeper brings it back."""
        pid, restarts = pod.pid, pod.restarts
        if pid is not None:
            with suppress(ProcessLookupError):  # it has just died, and comes back all the same
                os.kill(pid, signal.SIGTERM)

        async def back() -> bool:
            return (pid is None or pod.restarts > restarts) and await self._ready(pod)

        return await probe.wait_until(back, timeout=self._policy.grace + START)
