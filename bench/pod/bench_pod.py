"""The application of the claims about probes and slow clients: protected, and bare as the control."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from headworks import Headworks

WORK, WAIT = 0.005, 0.1
"""Seconds of processor time that one request takes, and seconds that it waits for somebody else."""
CHUNK, CHUNKS = b"x" * 65_536, 1024

bare = FastAPI()
app = Headworks.load(Path(__file__).parent / "headworks.toml").protect(FastAPI())


@bare.get("/busy")
@app.get("/busy")
async def busy() -> str:
    """A tenth of a second, some of it work."""
    ends = time.thread_time() + WORK
    while time.thread_time() < ends:
        pass
    await asyncio.sleep(WAIT)
    return "busy"


@bare.get("/long")
@app.get("/long")
async def long() -> str:
    """A call that waits, as for a vendor."""
    await asyncio.sleep(60)
    return "long"


@bare.get("/large")
@app.get("/large")
async def large() -> StreamingResponse:
    """64 MiB."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

    return StreamingResponse(chunks())


@bare.get("/quick")
@app.get("/quick")
async def quick() -> str:
    return "quick"


@bare.get("/health")
async def health() -> str:
    return "ok"
