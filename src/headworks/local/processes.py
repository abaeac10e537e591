"""Child processes that come back when they die and are gone when we are.

Every child leads its own process group, so that Ctrl-C in the terminal reaches only the supervisor
and a whole group can be killed; on Linux the kernel tells a child to end when the supervisor is
killed outright. What a child writes goes into its log file.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FIRST_DELAY, LAST_DELAY = 0.2, 5.0
"""Seconds before the first restart of a child, and the longest pause; each restart doubles it."""
SETTLED = 10.0
"""Seconds a child must live for its restarts to be forgotten."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Command:
    """What a child runs.

    ending  the signal that asks it to end
    grace   seconds it then gets before its group is killed
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    ending: signal.Signals = signal.SIGTERM
    grace: float = 5.0


class Child:
    """One supervised process. `say` gets a line when it dies and comes back, `changed` a call."""

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        rng: random.Random,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self.name, self.command = name, command
        self.restarts = 0
        self._rng, self._say, self._changed = rng, say, changed
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._killed = False

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Spawn it and keep it running. Raises `OSError` when it cannot be spawned."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def stop(self) -> None:
        """Ask it to end, wait `grace` seconds, then kill its group. Returns when it is gone."""
        self._leaving.set()
        if self._keeper is None:
            return
        self._signal(self.command.ending)
        await asyncio.wait((self._keeper,), timeout=self.command.grace)
        if not self._keeper.done():
            self._say(f"{self.name} did not end within {self.command.grace:g} s: killed")
            self.kill_nowait()
        await self._keeper

    def kill_nowait(self) -> None:
        """Kill its group at once; it does not come back."""
        self._killed = True
        self._leaving.set()
        if self.pid is not None:
            _kill_group(self.pid)

    def last_lines(self, count: int = 12) -> str:
        """The end of its log, every line prefixed with its name."""
        with suppress(OSError):
            text = self.command.log.read_text(encoding="utf-8", errors="replace")
            return "\n".join(f"{self.name} | {line}" for line in text.splitlines()[-count:])
        return ""

    async def _spawn(self) -> None:
        with self.command.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.argv,
                env=dict(self.command.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        self._changed()
        if self._leaving.is_set():  # told to end meanwhile
            self._signal(signal.SIGKILL if self._killed else self.command.ending)

    async def _keep(self) -> None:
        """Wait for its end and bring it back, until it is told to leave."""
        loop = asyncio.get_running_loop()
        failures = 0
        while self._process is not None:
            began, process = loop.time(), self._process
            code = await process.wait()
            _kill_group(process.pid)  # whatever it left behind would hold on to its port
            if self._leaving.is_set():
                return
            failures = 0 if loop.time() - began > SETTLED else failures
            delay = min(LAST_DELAY, FIRST_DELAY * 2**failures) * self._rng.uniform(0.8, 1.2)
            failures += 1
            self._say(f"{self.name} ended ({_how(code)}); it comes back in {delay:.1f} s")
            if await self._told_to_leave_within(delay):
                return
            self.restarts += 1  # before: what is told of the new process counts it
            try:
                await self._spawn()
            except OSError as error:
                self.restarts -= 1
                self._say(f"{self.name} cannot be started: {error.strerror or error}")

    async def _told_to_leave_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._leaving.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left, or only zombies (macOS)
        os.killpg(leader, signal.SIGKILL)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does first: ask the kernel to be told (SIGTERM) when its parent is gone.

    SIGTERM rather than SIGKILL, because nginx's workers end only if their master ends them.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
