"""The smallest service a stack can run: says where it is, and asks its vendor."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from headworks import Headworks

works = Headworks.load()
llm = works.vendor("llm")


async def who(request: Request) -> Response:
    overrides = {name: value for name, value in os.environ.items() if name.startswith("HEADWORKS_")}
    return JSONResponse(
        {
            "pod": os.environ.get("HEADWORKS_POD"),
            "client": request.headers.get("x-forwarded-for"),
            "environment": overrides,
        }
    )


async def chat(request: Request) -> Response:
    payload = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    reply = await llm.client.post("/chat/completions", json=payload)
    return JSONResponse(reply.json(), reply.status_code)


app = works.protect(
    Starlette(
        routes=[
            Route("/who", who, methods=["GET", "POST"]),
            Route("/chat", chat, methods=["POST"]),
        ]
    )
)
