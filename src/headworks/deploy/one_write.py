"""An answer's head and the first part of its body leave together.

uvicorn writes them one after the other, and each write costs a system call, a packet, and the client a
wake-up: for small answers a good part of all there is to do. Here a head waits for what follows it, at
most until the event loop's next turn, so that a stream's head goes out before its first event.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

HEAD: Final = b"HTTP/1.1 "
"""How a head begins. A body that begins so as well waits for a turn of the loop, and nothing else."""
JOINED: Final = 16_384
"""Bytes that are copied behind a head at most; more of them are written on their own."""


class OneWrite:
    """A transport that holds a head back; in everything else the transport it is made of."""

    __slots__ = ("_flush_at", "_held", "_inner", "_loop", "is_closing")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop, self.is_closing = inner, loop, inner.is_closing
        self._held = b""
        self._flush_at: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held:
            if len(data) <= JOINED:
                self._flush(data)
                return
            self._flush()
        elif isinstance(data, bytes) and data.startswith(HEAD):
            self._held = data
            self._flush_at = self._loop.call_soon(self._flush)
            return
        self._inner.write(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing else belongs to."""
        if self._held:
            self._flush()
        self._inner.write(data)

    def close(self) -> None:
        """Whatever is held is still sent."""
        if self._held:
            self._flush()
        self._inner.close()

    def abort(self) -> None:
        """Nothing more is sent."""
        self._forget()
        self._inner.abort()

    def _flush(self, more: bytes | bytearray | memoryview = b"") -> None:
        data = self._held + more
        self._forget()
        self._inner.write(data)

    def _forget(self) -> None:
        self._held = b""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
