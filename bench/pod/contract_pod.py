"""The application of the contract benchmark: it passes calls on, by a vendor's client or past it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse

from headworks import Headworks
from headworks.telemetry import Event, Waited


async def tier_of_key(key: str) -> str:
    return "any"


class Heard:
    """What the layers said since it was last asked for."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def told(self) -> dict[str, Any]:
        found = dict(vars(self))
        self.waits = []
        return found

    def record(self, event: Event) -> None:
        if isinstance(event, Waited):
            self.waits.append(event.seconds)


def surroundings() -> dict[str, str]:
    """The environment; the pods that CONTRACT_ASTRAY names find the store at CONTRACT_DETOUR."""
    found = dict(os.environ)
    if found.get("HEADWORKS_POD") in found.get("CONTRACT_ASTRAY", "").split(","):
        found["HEADWORKS_STORE__URL"] = found["CONTRACT_DETOUR"]
    return found


policy = Path(__file__).parent / "contract.toml"
works = Headworks.load(policy, resolve=tier_of_key, environ=surroundings())
app = works.protect(FastAPI())
vendors = {name: works.vendor(name) for name in works.policy.vendors}
plain, heard = httpx2.AsyncClient(), Heard()
works.telemetry.add(heard)


@app.post("/send/{name}")
@works.exempt
async def send(name: str, body: dict[str, Any], *, unlimited: bool = False) -> Response:
    """A vendor's answer to this body, as it comes; `unlimited`: asked by a client of nobody's."""
    vendor = vendors[name]
    client = plain if unlimited else vendor.client
    request = client.build_request("POST", f"{vendor.base_url}/chat/completions", json=body)
    answer = await client.send(request, stream=True)
    return StreamingResponse(answer.aiter_raw(), answer.status_code)


@app.get("/look")
@works.exempt
async def look() -> dict[str, Any]:
    """What this pod holds, and what it heard since it was last asked."""
    found = [vendor.statistics() for vendor in vendors.values()]
    slots = sum(works.policy.vendors[name].slots for name in vendors)
    return heard.told() | {
        "late": sum(one.late for one in found),
        "slots": slots - sum(one.free for one in found),
        "waiting": sum(one.waiting for one in found),
        "bookings": sum(one.booked for one in found),
        "calls": sum(one.in_flight for one in found),
        "tasks": len(asyncio.all_tasks()),
    }
