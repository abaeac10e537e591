"""The smallest service a stack can run: says where it is, and asks the vendor it was told about."""

from __future__ import annotations

import os

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

VENDOR = os.environ.get("HEADWORKS_VENDORS__LLM__BASE_URL", "")


async def ready(request: Request) -> Response:
    return Response("ready")


async def who(request: Request) -> Response:
    return JSONResponse(
        {
            "pod": os.environ.get("HEADWORKS_POD"),
            "pid": os.getpid(),
            "client": request.headers.get("x-forwarded-for"),
            "environment": {
                name: value for name, value in os.environ.items() if name.startswith("HEADWORKS_")
            },
        }
    )


async def chat(request: Request) -> Response:
    payload = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    async with httpx2.AsyncClient(base_url=VENDOR) as client:
        try:
            reply = await client.post("/chat/completions", json=payload)
        except httpx2.TransportError:
            return Response("the vendor is away", 502)
    return JSONResponse(reply.json(), reply.status_code)


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/who", who),
        Route("/chat", chat, methods=["POST"]),
    ]
)
