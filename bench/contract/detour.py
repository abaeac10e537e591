"""Another way to a server, which can be cut: what is told to a socket is told to a port.

    python -m bench.contract.detour SOCKET PORT

SOCKET is the number of an open file that it is born with, so that nobody else can take its port first.

Stopped (SIGSTOP) it is a network that carries nothing and says nothing; going on, it delivers late.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress

from headworks.local.parts import LOOPBACK

PIECE = 65_536


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on, then the end; an end that is not clean is an end."""
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def main(listening: socket.socket, to: int) -> None:
    """Serve until it is ended."""

    async def carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))

    await (await asyncio.start_server(carried, sock=listening)).serve_forever()


if __name__ == "__main__":
    asyncio.run(main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
