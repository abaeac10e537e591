"""An answer's head and the first part of its body leave together.

uvicorn writes them one after the other, and each write costs a system call, a packet, and the client a
wake-up: for small answers a good part of all there is to do. Here a head waits for what follows it, at
most until the event loop's next turn, so that a stream's head goes out before its first event.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any, Final

HEAD: Final = b"HTTP/1.1 "
"""How a head begins. A body that begins so as well waits for a turn of the loop, and nothing else."""
JOINED: Final = 16_384
"""Bytes that are copied behind a head at most; more of them are written on their own."""


class Heads:
    """The transports that hold a head. All of them share one call of the event loop's next turn: nearly
    every head has left with its body by then, and a call for each would cost more than the rest."""

    def __init__(self) -> None:
        self._holding: list[OneWrite] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, transport: OneWrite, loop: asyncio.AbstractEventLoop) -> None:
        """It holds one; to be called in `loop`. What an earlier loop has left is nobody's."""
        if not self._holding or self._loop is not loop:
            self._holding, self._loop = [], loop
            loop.call_soon(self._turn, context=Context())
        self._holding.append(transport)

    def _turn(self) -> None:
        holding, self._holding = self._holding, []
        for transport in holding:
            transport.flush()


class OneWrite:
    """A transport that holds a head back; in everything else the transport it is made of."""

    __slots__ = ("_heads", "_held", "_inner", "_loop", "is_closing")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, heads: Heads) -> None:
        self._inner, self._loop, self._heads = inner, loop, heads
        self.is_closing = inner.is_closing
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held:
            if len(data) <= JOINED:
                data, self._held = self._held + data, b""
            else:
                self.flush()
        elif isinstance(data, bytes) and data.startswith(HEAD):
            self._held = data
            self._heads.add(self, self._loop)
            return
        self._inner.write(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing else belongs to."""
        self.flush()
        self._inner.write(data)

    def close(self) -> None:
        """Whatever is held is still sent."""
        self.flush()
        self._inner.close()

    def abort(self) -> None:
        """Nothing more is sent."""
        self._held = b""
        self._inner.abort()

    def flush(self) -> None:
        """Send what is held, if anything is."""
        if self._held:
            data, self._held = self._held, b""
            self._inner.write(data)
