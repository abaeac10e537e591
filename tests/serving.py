"""A uvicorn of the tests' own, around any application."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """Its port and the server, ended with the context; options are those of `uvicorn.Config`."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, **({"lifespan": "off", "log_level": "warning"} | options))
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait((task,), timeout=60.0)
