"""Asks whether something on this machine answers yet. Plain sockets: a supervisor needs no client."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

POLL = 0.05
"""Seconds between two questions."""
ANSWER = 1.0
"""Seconds one answer may take."""


async def http_status(host: str, port: int, path: str) -> int:
    """The status of a GET; 0 when nobody answers within a second."""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    reply = await _exchange(host, port, head.encode())
    words = reply.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


async def valkey_answers(host: str, port: int) -> bool:
    """Whether a Valkey answers PING."""
    return (await _exchange(host, port, b"PING\r\n")).startswith(b"+PONG")


async def wait_until(ready: Callable[[], Awaitable[bool]], *, timeout: float) -> bool:
    """Ask until `ready` says yes, for at most `timeout` seconds; False when the time is up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while not await ready():  # noqa: ASYNC110  # another process sets no event here
                await asyncio.sleep(POLL)
            return True
    return False


async def _exchange(host: str, port: int, question: bytes) -> bytes:
    """The first line of what comes back; empty when nothing does."""
    writer = None
    try:
        async with asyncio.timeout(ANSWER):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(question)
            return await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return b""
    finally:
        if writer is not None:
            writer.close()


def port_in_use(host: str, port: int) -> str | None:
    """Why `port` cannot be listened on, in a few words; None when it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None


def free_ports(host: str, count: int, rng: random.Random) -> list[int]:
    """So many different ports nobody listens on, below those the system gives to outgoing connections:

    a part that is away for a moment must find its port free when it comes back.
    """
    found: list[int] = []
    while len(found) < count:
        port = rng.randrange(20_000, 32_000)
        if port not in found and port_in_use(host, port) is None:
            found.append(port)
    return found
