"""One run from beginning to end: reach the service, follow the vendors, drive, report."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping

from headworks.local.load.drive import CEILING, Drive
from headworks.local.load.profiles import Profile
from headworks.local.load.report import Report
from headworks.local.load.tally import Tally
from headworks.local.load.vendors import VendorWatch
from headworks.local.load.wire import Broken, Client, loopback

ANSWER_TIMEOUT = 70.0
"""Seconds for one request; longer than any sound policy lets a request take."""

PATIENCE = 30.0
"""Seconds to wait, after the last request was sent, for the answers still missing."""


class CannotStart(Exception):
    """The run cannot begin; the message is one sentence with the remedy."""


class LoadRun:
    """A profile driven against one service for so many seconds.

    url      the service, plain HTTP on loopback; anything else raises `NotLoopback`
    vendors  the fake vendors to ask for their count, by name; the same rule
    seed     the same seed sends the same requests at the same times
    """

    def __init__(
        self, profile: Profile, url: str, *, seconds: float, seed: int, vendors: Mapping[str, str]
    ) -> None:
        self._host, self._port = loopback(url)
        self._profile, self._url = profile, url
        self._seconds, self._seed = seconds, seed
        self._watches = [VendorWatch(name, address) for name, address in vendors.items()]
        self._client = Client(self._host, self._port, timeout=ANSWER_TIMEOUT)
        self._tally = Tally()
        self._drive = Drive(
            profile, self._client.exchange, host=f"{self._host}:{self._port}", tally=self._tally
        )
        self._sending: asyncio.Task[None] | None = None
        self._began: float | None = None

    async def run(self) -> Report:
        """Drive to the end. Raises `CannotStart` when nothing answers at the URL."""
        _allow_files(CEILING + 200)
        _bind_all(self._profile.sources)
        try:
            await self._reach()
            for watch in self._watches:
                await watch.look()
            followers = [asyncio.ensure_future(watch.follow()) for watch in self._watches]
            try:
                await self._through()
            finally:
                for follower in followers:
                    follower.cancel()
                await asyncio.gather(*followers, return_exceptions=True)
            for watch in self._watches:
                await watch.look()
            return self.report()
        finally:
            self._client.close()
            for watch in self._watches:
                watch.close()

    async def _through(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self._sending = asyncio.ensure_future(self._drive.send_all(self._seconds, seed=self._seed))
        await asyncio.wait((self._sending,))
        if not self._sending.cancelled():
            self._sending.result()
        sent_in = asyncio.get_running_loop().time() - self._began
        for watch in self._watches:
            await watch.look()
            watch.mark(sent_in)
        await self._drive.wait_answers(0 if self._sending.cancelled() else PATIENCE)

    async def _reach(self) -> None:
        probe = Client(self._host, self._port, timeout=5.0)
        try:
            await probe.exchange(f"GET /health HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        except Broken:
            raise CannotStart(
                f"nothing answers at {self._url}; start the stack with `headworks up`, "
                "or say with --url where it is"
            ) from None
        finally:
            probe.close()

    def stop(self) -> None:
        """End the run early; `run` then returns the report of what has been counted."""
        if self._sending is None:
            self._seconds = 0.0  # it has not begun to send, and will not
        else:
            self._sending.cancel()

    def report(self) -> Report:
        """The report so far. Call it on the event loop's thread."""
        now = asyncio.get_running_loop().time()
        return Report.of(
            self._profile,
            self._tally,
            url=self._url,
            seed=self._seed,
            seconds=now - self._began if self._began is not None else 0.0,
            vendors=tuple(watch.count() for watch in self._watches),
        )


def _allow_files(wanted: int) -> None:
    """Raise this process's own limit of open files as far as it may go."""
    if sys.platform == "win32":  # has no such limit
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))


def _bind_all(sources: tuple[str, ...]) -> None:
    """Raise `CannotStart` unless this machine can send from every address."""
    for source in sources:
        with socket.socket() as probe:
            try:
                probe.bind((source, 0))
            except OSError:
                raise CannotStart(
                    f"this machine cannot send from {source}; outside Linux, add the address to the "
                    f"loopback interface first (macOS: sudo ifconfig lo0 alias {source})"
                ) from None
