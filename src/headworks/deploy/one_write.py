"""An answer's head and the first part of its body leave together.

uvicorn writes them one after the other, and each write costs a system call, a packet, and the client a
wake-up: for small answers a good part of all there is to do. Here a head waits for what follows it, at
most until the event loop's next turn, so that a stream's head goes out before its first event.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from operator import attrgetter
from typing import Final

HEAD: Final = b"HTTP/1.1 "
"""How a head begins. A body that begins so as well waits for a turn of the loop, and nothing else."""
JOINED: Final = 16_384
"""Bytes that are copied behind a head at most; more of them are written on their own."""


class Heads:
    """The transports that hold a head. All of them share one call of the event loop's next turn: nearly
    every head has left with its body by then, and a call for each would cost more than the rest.

    holding  those of this turn, which add themselves
    loop     theirs; what an earlier one has left is nobody's
    """

    def __init__(self) -> None:
        self.holding: list[OneWrite] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The first of a turn of `loop` is about to hold one."""
        self.holding, self.loop = [], loop
        loop.call_soon(self._turn, context=Context())

    def _turn(self) -> None:
        holding, self.holding = self.holding, []
        for transport in holding:
            if transport.held:
                transport.flush()


class OneWrite:
    """A transport that holds a head back; in everything else the transport it is made of.

    held  the head, empty where there is none
    """

    __slots__ = ("_heads", "_inner", "_loop", "held", "is_closing")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, heads: Heads) -> None:
        self._inner, self._loop, self._heads = inner, loop, heads
        self.is_closing = inner.is_closing
        self.held = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.held:
            if len(data) <= JOINED:
                data, self.held = self.held + data, b""
            else:
                self.flush()
        elif isinstance(data, bytes) and data.startswith(HEAD):
            self.held, heads = data, self._heads
            if not heads.holding or heads.loop is not self._loop:
                heads.begin(self._loop)
            heads.holding.append(self)
            return
        self._inner.write(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing else belongs to."""
        if self.held:
            self.flush()
        self._inner.write(data)

    def close(self) -> None:
        """Whatever is held is still sent."""
        self.flush()
        self._inner.close()

    def abort(self) -> None:
        """Nothing more is sent."""
        self.held = b""
        self._inner.abort()

    def flush(self) -> None:
        """Send what is held, if anything is."""
        if self.held:
            data, self.held = self.held, b""
            self._inner.write(data)


for _name in dir(asyncio.Transport):
    # Not by `__getattr__`: in a class that has one, even what its objects have is found slowly.
    if not _name.startswith("_") and not hasattr(OneWrite, _name):
        setattr(OneWrite, _name, property(attrgetter(f"_inner.{_name}")))
