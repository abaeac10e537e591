"""Requests on many connections, ten a second on each: `python -m bench.hammer URL CONNECTIONS`.

Runs until it is ended, in a process of its own, so that whoever measures beside it is not held up.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import suppress

import httpx2

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


PAUSE = 0.1
"""Seconds between an answer and the next request of its connection."""


async def hammer(url: httpx2.URL) -> None:
    """One connection, opened again whenever it is closed."""
    question = f"GET {url.path} HTTP/1.1\r\nHost: {url.host}\r\n\r\n".encode()
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            try:
                while True:
                    writer.write(question)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = LENGTH.search(head)
                    await reader.readexactly(int(length[1]) if length else 0)
                    await asyncio.sleep(PAUSE)
            finally:
                writer.close()
        await asyncio.sleep(0.01)  # thrown out: come back


async def main(url: str, connections: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(hammer(httpx2.URL(url)))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], int(sys.argv[2])))
