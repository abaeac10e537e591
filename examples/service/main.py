"""A service behind headworks, small enough to copy: a chat, a search, and a fan-out over both.

No handler below mentions a limit, a queue or a refusal. The policy beside this file holds the
numbers; a refusal that a handler lets escape becomes the right 429, 502, 503 or 504 by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, StreamingResponse
from openai import APIError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

from headworks import Headworks, problem
from headworks.errors import Refused, VendorFailed

HERE = Path(__file__).parent
HOME = (HERE / "index.html").read_text(encoding="utf-8")
MODEL = os.environ.get("CHAT_MODEL", "gpt-small")

KEYS = {
    **{f"free-{n}": "free" for n in range(1, 100)},
    **{f"pro-{n}": "pro" for n in range(1, 10)},
    **{f"enterprise-{n}": "enterprise" for n in range(1, 4)},
}


async def tier_of_key(key: str) -> str | None:
    """The tier of an API key, None for a stranger's. Yours asks a database or an identity service."""
    return KEYS.get(key)


works = Headworks.load(HERE / "headworks.toml", resolve=tier_of_key)
app = works.protect(FastAPI(title="A service behind headworks"))

llm = works.vendor("llm")
search = works.vendor("search")
openai = AsyncOpenAI(
    base_url=llm.base_url,
    http_client=llm.client,
    max_retries=0,  # headworks retries, within the vendor's quota and the request's deadline
    api_key=os.environ.get("OPENAI_API_KEY", "local"),
)


class Message(BaseModel):
    message: str = Field(min_length=1, max_length=20_000)
    stream: bool = False


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=20_000)


async def complete(prompt: str) -> str:
    completion = await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=256
    )
    return completion.choices[0].message.content or ""


@app.post("/chat", response_model=None)
async def chat(ask: Message) -> dict[str, str] | StreamingResponse:
    """Answer a message, as JSON or, with `"stream": true`, word by word as server-sent events."""
    if not ask.stream:
        return {"reply": await complete(ask.message)}
    # Opened before the response starts: a refusal is still an honest 429, not a broken stream.
    chunks = await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": ask.message}], max_tokens=256, stream=True
    )
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events(chunks), media_type="text/event-stream", headers=headers)


async def events(chunks: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
    """The words as they come, then exactly one terminal event: `done` or `error`.

    Leaving the block closes the vendor's stream, also when the browser has gone.
    """
    async with chunks:
        try:
            async for chunk in chunks:
                for choice in chunk.choices:
                    if choice.delta.content:
                        yield event("message", {"text": choice.delta.content})
        except (APIError, Refused) as error:
            refused = error if isinstance(error, Refused) else VendorFailed(str(error))
            yield event("error", problem.body(refused))
        else:
            yield event("done", {})


def event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def look_up(query: str) -> Any:
    response = await search.client.get("/search", params={"q": query})
    response.raise_for_status()
    return response.json()


@app.get("/search")
async def find(q: Annotated[str, Query(min_length=1, max_length=200)]) -> Any:
    """Search through another vendor, with limits of its own, over plain httpx2."""
    return await look_up(q)


@app.post("/analyze")
async def analyze(ask: Text) -> dict[str, Any]:
    """Three vendor calls at once; the first that is refused cancels the other two."""
    async with asyncio.TaskGroup() as group:
        summary = group.create_task(complete(f"Summarise in one sentence: {ask.text}"))
        mood = group.create_task(complete(f"Name the mood in one word: {ask.text}"))
        related = group.create_task(look_up(ask.text[:200]))
    return {"summary": summary.result(), "mood": mood.result(), "related": related.result()}


@app.get("/", response_class=HTMLResponse, include_in_schema=False)
async def home() -> str:
    """A page to try it by hand."""
    return HOME
