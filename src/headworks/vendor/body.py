"""A vendor's answer while its body is being read: the slot lives exactly as long as this does."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

from headworks.caller import staying
from headworks.cleanup import Reaper, shielded
from headworks.current import Current
from headworks.errors import CallerLeft, CallTimeout, Refused
from headworks.limits.breaker import Ending
from headworks.vendor.pipeline import Attempt
from headworks.vendor.retry import Outcome
from headworks.vendor.usage import UsageChunk, UsageReader

log = logging.getLogger("headworks")

CLOSING = 2.0
"""Seconds that closing an unfinished connection may take."""

Ended = Callable[[UsageReader, Ending, bool], Outcome]
"""What a call came to, and cost, from its body: the reader, how reading ended, and whether the body was
read to its end."""

Refusal = Callable[[Exception], Refused | None]
"""The refusal that an answer which broke off comes to; None where it is no fault of the vendor's."""


class Body(httpx2.AsyncByteStream):
    """Passes the vendor's bytes on, and ends the attempt once: at the last byte, a failure, or close.

    Iterating again goes on where the last iteration stopped (the `openai` SDK drains a stream that
    way). Each gap between two pieces is bounded by `gap` seconds, and by the request's caller, who may
    leave. An open body is registered with the request that opened it, and closed with it. One that no
    request closes (opened outside of any, or by a task that outlives its own) is closed when nobody has
    read it for `gap` seconds, or sooner when it is dropped and collected.

    What breaks it off is raised as it is, with the refusal that it comes to as its cause: who lets it
    escape is answered with that, and no 500.

    hidden  takes out what the caller did not ask for
    streamed  it is a stream of events: one that ends before its first byte has failed
    """

    def __init__(
        self,
        answer: httpx2.Response,
        attempt: Attempt,
        who: Current,
        *,
        gap: float,
        streamed: bool,
        reader: UsageReader,
        hidden: UsageChunk | None,
        ended: Ended,
        refusal: Refusal,
        reaper: Reaper,
    ) -> None:
        assert isinstance(answer.stream, httpx2.AsyncByteStream)  # an async client's answer
        self._answer, self._attempt, self._who, self._gap = answer, attempt, who, gap
        self._ended, self._reaper, self._loop = ended, reaper, asyncio.get_running_loop()
        self._refusal = refusal
        self._pieces: AsyncIterator[bytes] = aiter(answer.stream)
        self._reader, self._hidden, self._streamed = reader, hidden, streamed
        self._closed = self._whole = self._reading = self._unread = False
        self._read_at = self._loop.time()
        self._idle = self._loop.call_at(self._read_at + gap, _look, weakref.ref(self))
        self._close: Callable[[], Awaitable[None]] = self.aclose
        who.closers.add(self._close)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                piece = await self._next()
            except StopAsyncIteration:
                if self._hidden is not None and (rest := self._hidden.rest()):
                    return rest
                raise
            self._reader.feed(piece)
            if self._hidden is not None:
                piece = self._hidden.feed(piece)
            if piece:
                return piece

    async def _next(self) -> bytes:
        """The next piece as it came, within its bounds."""
        if self._unread:
            raise httpx2.ReadError(
                f"nobody read this stream for {self._gap:g} s, so it was closed",
                request=self._answer.request,
            )
        if self._closed and not self._whole:
            raise httpx2.StreamClosed
        self._reading = True
        try:
            async with staying(self._who.caller), asyncio.timeout(self._gap) as timer:
                piece = await anext(self._pieces)
        except StopAsyncIteration:
            empty = self._streamed and not self._reader.seen
            self._end(Ending.FAILED if empty else Ending.OK, whole=True)
            raise
        except TimeoutError as error:
            self._end(Ending.OVERLOADED if timer.expired() else Ending.FAILED)
            late = CallTimeout(f"the vendor sent nothing for {self._gap:g} s")
            late.__cause__ = error
            raise httpx2.ReadTimeout(late.detail, request=self._answer.request) from late
        except CallerLeft:
            self._end(Ending.IGNORED)
            raise
        except Exception as error:
            self._end(Ending.FAILED)
            if (refused := self._refusal(error)) is not None:
                refused.__cause__, error.__cause__ = error.__cause__, refused
            raise
        except BaseException:
            self._end(Ending.IGNORED)
            raise
        finally:
            self._reading, self._read_at = False, self._loop.time()
        return piece

    async def aclose(self) -> None:
        """Close the connection, or return it to the pool if the body was read to its end."""
        self._end(Ending.OK if self._reader.seen else Ending.IGNORED)
        if self._whole:
            await self._answer.aclose()
            return
        try:
            await shielded(self._answer.aclose(), timeout=CLOSING)
        except TimeoutError:
            log.warning("a vendor's connection did not close within %g s; left to itself", CLOSING)

    def _end(self, ending: Ending, *, whole: bool = False) -> None:
        """Synchronous, so that no cancellation can come between."""
        if self._closed:
            return
        self._closed, self._whole = True, whole
        self._idle.cancel()
        self._who.closers.discard(self._close)
        outcome = self._ended(self._reader, ending, whole)
        self._attempt.end(
            outcome.ending,
            status=self._answer.status_code,
            used=outcome.used,
            cool_down=outcome.retry_after or 0.0,
        )

    def look(self) -> None:
        """Close what nobody reads any more and no request will close."""
        now, caller = self._loop.time(), self._who.caller
        kept = self._reading or (caller is not None and not caller.over)
        until = (now if kept else self._read_at) + self._gap
        if until > now:
            self._idle = self._loop.call_at(until, _look, weakref.ref(self))
            return
        self._unread = True
        self._end(Ending.OK if self._reader.seen else Ending.IGNORED)
        self._reaper.hand_over("closing a stream that nobody read", self.aclose)

    def __del__(self) -> None:
        """Whoever held it let it go. The collector runs in any thread; closing belongs to the loop."""
        if not getattr(self, "_closed", True) and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                self._reaper.hand_over, "closing a stream that was dropped", self.aclose
            )


def _look(body: weakref.ref[Body]) -> None:
    """The timer's way to a body that it must not keep alive."""
    if (found := body()) is not None:
        found.look()
