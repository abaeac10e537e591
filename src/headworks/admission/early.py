"""What a client sends while its request waits in line: read ahead, kept in order, handed on.

Reading ahead is the only way to hear that a client has left: ASGI says so in `receive`. It also asks a
client that waits for `100 Continue` to send its body, so it is done only for those who wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from starlette.types import Message, Receive

KEPT: Final = 16 * 1024
"""Bytes read ahead for one request, give or take the last message; then nothing more is read, the
client is held up by its own connection, and its leaving goes unnoticed until its turn."""
EACH: Final = 256
"""Bytes that a message counts for beside its body, so that many small ones are bounded too."""


class EarlyMessages:
    """Stands in for `receive`, from which it reads ahead until `hand_on`.

    receive  the server's
    left     called once if the client leaves meanwhile
    """

    def __init__(self, receive: Receive, left: Callable[[], None]) -> None:
        self._receive, self._left = receive, left
        self._kept: deque[Message] = deque()
        self._ahead = True
        self._reading = asyncio.create_task(self._read(), name="headworks: reading ahead")

    async def receive(self) -> Message:
        """The next message: one read ahead, the one being read, or the server's own next."""
        if not self._kept and not self._reading.done():
            await asyncio.wait((self._reading,))
        if self._kept:
            return self._kept.popleft()
        if not self._reading.cancelled() and self._reading.done():
            self._reading.result()  # what the server raised meanwhile is for whoever reads on
        return await self._receive()

    def hand_on(self) -> None:
        """Read no further ahead than what is under way: the application reads from here on."""
        self._ahead = False

    def close(self) -> None:
        """The request is over: whatever is still being read is not wanted."""
        self._reading.cancel()

    async def _read(self) -> None:
        room = KEPT
        while self._ahead and room > 0:
            message = await self._receive()
            self._kept.append(message)
            if message["type"] == "http.disconnect":
                self._left()
                return
            room -= len(message.get("body", b"")) + EACH
