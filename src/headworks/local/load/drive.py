"""Sends a profile's requests when they are due, and counts what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from headworks.local.load.outcome import Outcome, broken, judge
from headworks.local.load.profiles import Call, Profile, Shot
from headworks.local.load.tally import Tally
from headworks.local.load.wire import Answer, Broken

Exchange = Callable[[bytes, str], Awaitable[Answer]]
"""Sends a complete request from a source address; brings the answer or raises `Broken`."""

CEILING = 2000
"""Requests under way at most; those due beyond it are counted as unsent."""


class Drive:
    """One run of a profile. Open-loop: a request is sent when it is due, whatever the others do.

    exchange  how to send
    host      what the `Host` header says
    tally     counted into
    """

    def __init__(self, profile: Profile, exchange: Exchange, *, host: str, tally: Tally) -> None:
        self._profile, self._exchange, self._tally = profile, exchange, tally
        self._host = host
        self._under_way: set[asyncio.Task[Outcome]] = set()
        self._requests: dict[tuple[Call, str], bytes] = {}  # as many as the profile has keys × calls

    async def send_all(self, seconds: float, *, seed: int) -> None:
        """Send what is due within so many seconds; returns when they are over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, shot in enumerate(self._profile.shots(seconds, seed=seed)):
            early = began + shot.at - loop.time()
            if early > 0 or number % 32 == 0:  # when behind, still let answers be read
                await asyncio.sleep(max(early, 0))
            self._tally.late = max(self._tally.late, loop.time() - began - shot.at)
            self._fire(shot, began + shot.at)
        await asyncio.sleep(max(began + seconds - loop.time(), 0))

    async def wait_answers(self, timeout: float) -> None:
        """Wait for the answers under way; what is missing after `timeout` seconds is broken."""
        if self._under_way:
            _, late = await asyncio.wait(set(self._under_way), timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _fire(self, shot: Shot, due: float) -> None:
        if len(self._under_way) >= CEILING:
            self._tally.unsent += 1
            return
        self._tally.sent[shot.crowd] += 1
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._outcome(shot))
        self._under_way.add(task)

        def ended(task: asyncio.Task[Outcome]) -> None:
            self._under_way.discard(task)
            outcome = broken("abandoned") if task.cancelled() else task.result()
            self._tally.end(shot.crowd, outcome, loop.time() - due)

        task.add_done_callback(ended)

    async def _outcome(self, shot: Shot) -> Outcome:
        request = self._requests.get((shot.call, shot.key))
        if request is None:
            request = self._requests[shot.call, shot.key] = encode(shot.call, shot.key, self._host)
        try:
            return judge(await self._exchange(request, shot.source))
        except Broken as error:
            return broken(error.kind)


def encode(call: Call, key: str, host: str) -> bytes:
    """A call as HTTP/1.1, with `X-API-Key` unless the key is empty."""
    lines = [f"{call.method} {call.path} HTTP/1.1", f"Host: {host}", "Accept: */*"]
    if key:
        lines.append(f"X-API-Key: {key}")
    body = call.body.encode()
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
