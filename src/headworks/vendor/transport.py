"""The vendor pipeline as an httpx2 transport: what lets unmodified SDKs use it.

A refusal of ours is a synthetic response with `x-should-retry: false`, the one form that the openai
and anthropic SDKs both surface after exactly one attempt; `x-headworks-refusal` names its reason, and
`response.extensions["headworks.refused"]` holds the `Refused` itself, so that whatever exception the
SDK makes of it can be translated back. A vendor's own failing answer passes unchanged but carries
the same extension.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.cookiejar
import math
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

import httpx2

from headworks import problem
from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.current import current, enter, leave
from headworks.errors import (
    CallTimeout,
    DeadlineExceeded,
    ForeignOrigin,
    Refused,
    VendorFailed,
    VendorQuota,
)
from headworks.limits.breaker import Ending
from headworks.policy.profiles import Profile
from headworks.policy.settings import VendorSettings
from headworks.policy.units import Unit
from headworks.telemetry import Rejected
from headworks.vendor import midway
from headworks.vendor.body import Body
from headworks.vendor.estimate import Estimate, Outputs, Tokenizer, estimate, json_of
from headworks.vendor.pipeline import Attempt, Exchange, Pipeline, TooLate
from headworks.vendor.rejection import (
    KIND,
    OVERLOADED,
    PAUSE,
    REJECTED,
    SPENT,
    Rejection,
    classified,
)
from headworks.vendor.retry import Outcome
from headworks.vendor.told import Headers
from headworks.vendor.usage import UsageChunk, UsageReader, ask_for_usage, settled
from headworks.vendor.wish import Wish, Wishes

REFUSED = "headworks.refused"
"""The key of a response's extensions under which its `Refused` stands."""

RETRYABLE = frozenset({429, 500, 502, 503, 529})
FAR = 1e10
"""Seconds from which on a time to come back is none, and not passed on to callers."""

WRITING = frozenset({"http11.send_request_headers.started", "http2.send_request_headers.started"})
"""The trace events with which a request begins to go out."""

Trace = Callable[[str, Mapping[str, Any]], Awaitable[None]]

FREE = dict.fromkeys(get_args(Unit), 0)
"""What an attempt cost that the vendor never saw, or does not count."""

NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
"""The request cannot have reached the vendor, so sending it again is safe."""

OURS = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
"""Mistakes in the request itself: raised as they are, and no fault of the vendor's."""


class NoCookies(http.cookiejar.DefaultCookiePolicy):
    """Keeps nothing that a vendor sets: one client serves every caller of this pod, and a cookie of one
    must not travel with another's call. Cookies given with a request are sent."""

    def set_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        return False


def no_cookies() -> http.cookiejar.CookieJar:
    """A jar that stays empty."""
    return http.cookiejar.CookieJar(NoCookies())


class VendorTransport(httpx2.AsyncBaseTransport):
    """Runs every request of a client through a vendor's pipeline.

    engine  an httpx2 client that does the sending: with the policy's pool and the environment's
            proxies, which a client built around a transport would otherwise ignore
    reaper  closes what nobody waits for
    home    the event loop that all of it is used in
    counts_tokens  whether a quota of the policy does, so that usage is worth asking for
    now     wall-clock time, for `Retry-After` given as a date
    """

    def __init__(
        self,
        vendor: str,
        settings: VendorSettings,
        profile: Profile,
        pipeline: Pipeline,
        *,
        engine: httpx2.AsyncClient,
        reaper: Reaper,
        home: OneLoop,
        wishes: Wishes,
        counts_tokens: bool,
        now: Callable[[], datetime],
    ) -> None:
        self.tokenizer: Tokenizer | None = None
        self._wishes, self._counts_tokens, self._outputs = wishes, counts_tokens, Outputs()
        self._vendor, self._settings, self._profile = vendor, settings, profile
        self._pipeline, self._engine, self._now = pipeline, engine, now
        self._reaper, self._headers = reaper, Headers(vendor, profile.headers)
        self._home = home
        self._origin = origin(httpx2.URL(settings.base_url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._home.enter(f"vendor '{self._vendor}'")
        if origin(request.url) != self._origin:
            raise ForeignOrigin(vendor=self._vendor, asked=origin(request.url), allowed=self._origin)
        wish = self._wishes.take_off(request)
        content = _content(request)
        body = json_of(content)
        expected = await estimate(body, self._profile.charges, self._outputs, self.tokenizer)
        asked = None
        if self._counts_tokens:
            asked = ask_for_usage(content, body, self._profile.usage, request.url.path)
        patience = _tighten(request, self._settings)
        sent = request if asked is None else _asking(request, asked)
        try:
            answer, attempt = await self._call(sent, expected, wish, patience)
        except Refused as refused:
            return synthetic(refused, request)
        return self._response(answer, attempt, request, expected, asked=asked is not None)

    async def _call(
        self, request: httpx2.Request, expected: Estimate, wish: Wish, patience: float
    ) -> tuple[httpx2.Response, Attempt]:
        """The request through the pipeline, by whoever is being served or is wished to be."""
        extensions = dict(request.extensions)
        patient, replayable = patience == math.inf, _replayable(request)

        async def send(until: float) -> httpx2.Response:
            request.extensions = {**extensions, "trace": _punctual(until, extensions.get("trace"))}
            answer = await self._engine.send(request, stream=True)
            for told in self._headers.read(answer.headers, self._now()):
                self._pipeline.telemetry.emit(told)
            return await self._rejected(answer) if answer.status_code in OVERLOADED else answer

        def judge(result: httpx2.Response | Exception) -> Outcome:
            outcome = self._judge(result, patient=patient)
            return outcome if replayable else replace(outcome, retryable=False)

        who, cost = current(), wish.cost(expected.cost())
        until = asyncio.get_running_loop().time() + patience
        exchange = Exchange(send=send, judge=judge, discard=self._discard)
        token = enter(wish.standing(who, until))
        try:
            return await self._pipeline.call(expected.model, cost, exchange)
        except DeadlineExceeded as error:
            if until >= who.deadline:
                raise
            detail = f"vendor '{self._vendor}': the call's own timeout of {patience:g} s is over"
            raise CallTimeout(detail) from error
        finally:
            leave(token)

    def _response(
        self,
        answer: httpx2.Response,
        attempt: Attempt,
        request: httpx2.Request,
        expected: Estimate,
        *,
        asked: bool,
    ) -> httpx2.Response:
        """The vendor's answer as the caller sees it; `asked`, if we had it tell its usage."""
        outcome = self._judge(answer)
        encoding = answer.headers.get("content-encoding", "")
        streamed = answer.headers.get("content-type", "").startswith("text/event-stream")

        refunds, live = self._profile.refunds, self._profile.charges.output == "live"

        def ended(reader: UsageReader, ending: Ending, whole: bool) -> Outcome:
            error = midway.find(reader.tail) if streamed and answer.is_success else None
            whole = whole and error is None
            used = settled(expected, reader, whole=whole, streamed=streamed, refunds=refunds)
            if live and used and whole and "output_tokens" in used:
                self._outputs.saw(expected.model, used["output_tokens"])
            if error is None:
                return Outcome(ending, used=used)
            return Outcome(error.ending, used=used, retry_after=self._paused_by(error))

        body = Body(
            answer,
            attempt,
            current(),
            gap=self._settings.call_timeout,
            streamed=streamed,
            reader=UsageReader(self._profile.usage, encoding),
            hidden=UsageChunk() if asked and streamed and not encoding else None,
            reaper=self._reaper,
            ended=ended,
            refusal=lambda error: self._judge_error(error, patient=True).refusal,
        )
        told = {key: value for key, value in answer.extensions.items() if key != REFUSED}
        headers = list(answer.headers.raw)
        if outcome.refusal is not None:
            told[REFUSED] = outcome.refusal
            if outcome.retryable or outcome.ending is Ending.OVERLOADED:
                # our retries are spent, or useless; an SDK's would only multiply them
                headers = [pair for pair in headers if pair[0].lower() != b"x-should-retry"]
                headers.append((b"x-should-retry", b"false"))
        return httpx2.Response(
            answer.status_code, headers=headers, stream=body, extensions=told, request=request
        )

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _judge(self, result: httpx2.Response | Exception, *, patient: bool = True) -> Outcome:
        """Name what came back from the vendor; `patient`, if it was given the policy's time for it."""
        if isinstance(result, Exception):
            return self._judge_error(result, patient=patient)
        status = result.status_code
        if status in OVERLOADED:
            after = self._retry_after(result.headers)
            wait = after or PAUSE  # none named, or one that is over: it was too early all the same
            kind = result.extensions.get(KIND, Rejection.RATE)
            spent = kind is Rejection.SPEND
            if spent:
                wait = max(wait, SPENT)
            detail = f"vendor '{self._vendor}' answered {status} ({kind})"
            refusal = VendorQuota(detail, retry_after=wait, limit=self._vendor)
            charges = self._profile.charges
            counts = charges.rejected_calls if status == REJECTED else charges.failed_calls
            used = None if counts else FREE
            return Outcome(Ending.OVERLOADED, refusal, not spent, wait, status, used)
        if status >= 500:
            after = self._retry_after(result.headers)
            detail = f"vendor '{self._vendor}' answered {status}"
            refused = VendorFailed(detail, retry_after=PAUSE if after is None else after)
            used = None if self._profile.charges.failed_calls else FREE
            return Outcome(Ending.FAILED, refused, status in RETRYABLE, after, status, used)
        return Outcome(Ending.OK)

    def _judge_error(self, error: Exception, *, patient: bool) -> Outcome:
        if isinstance(error, httpx2.PoolTimeout):
            refused = VendorFailed("no connection of the pool came free in time", retry_after=PAUSE)
            return Outcome(Ending.IGNORED, refused, used=FREE)
        if isinstance(error, httpx2.TransportError) and not isinstance(error, OURS):
            detail = f"vendor '{self._vendor}': {type(error).__name__}: {error}"
            late = isinstance(error, httpx2.TimeoutException) and not isinstance(error, NOT_SENT)
            ending = Ending.OVERLOADED if late else Ending.FAILED
            if isinstance(error, httpx2.ReadTimeout) and not patient:
                ending = Ending.IGNORED
            refused = VendorFailed(detail, retry_after=PAUSE)
            unsent = isinstance(error, NOT_SENT)
            return Outcome(ending, refused, retryable=unsent, used=FREE if unsent else None)
        return Outcome(Ending.IGNORED)

    async def _rejected(self, answer: httpx2.Response) -> httpx2.Response:
        """Read why the vendor rejected the call; a body that does not come is closed by the reaper."""
        try:
            answer = await classified(answer)
        except BaseException:
            self._discard(answer)
            raise
        self._pipeline.telemetry.emit(Rejected(self._vendor, answer.extensions[KIND]))
        return answer

    def _paused_by(self, error: midway.Midway) -> float:
        """Seconds for which an error told midway pauses the fleet; that it does is told, too."""
        if error.ending is not Ending.OVERLOADED:
            return 0.0
        self._pipeline.telemetry.emit(Rejected(self._vendor, error.kind))
        return SPENT if error.kind is Rejection.SPEND else PAUSE

    def _discard(self, answer: httpx2.Response) -> None:
        """Close an answer that is about to be replaced by another attempt, which waits for nothing."""
        self._reaper.hand_over(f"closing an answer of vendor '{self._vendor}'", answer.aclose)

    def _retry_after(self, headers: httpx2.Headers) -> float | None:
        """Seconds from the headers that the profile names (milliseconds, seconds or an HTTP date); None
        without one that can be read."""
        for name in self._profile.headers.retry_after:
            scale = 0.001 if name.endswith("-ms") else 1.0
            seconds = _wait(headers.get(name, "").strip(), scale, self._now())
            if abs(seconds) < FAR:
                return max(0.0, seconds)
        return None


def origin(url: httpx2.URL) -> str:
    """Scheme, host and port of a URL, the port always named."""
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


def _wait(value: str, scale: float, now: datetime) -> float:
    """Seconds from a number of `scale` seconds each, or until a date; nan for neither."""
    try:
        return float(value) * scale
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return math.nan
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()


def synthetic(refused: Refused, request: httpx2.Request) -> httpx2.Response:
    """A refusal in the form that SDKs surface at once, after one attempt."""
    markers = [
        (b"x-should-retry", b"false"),
        (b"x-headworks-refusal", refused.reason.encode()),
    ]
    status, headers, content = problem.render(refused, markers)
    return httpx2.Response(
        status, headers=headers, content=content, request=request, extensions={REFUSED: refused}
    )


def _punctual(until: float, theirs: Trace | None) -> Trace:
    """Let nothing be written after `until`: the last moment at which a late call can still be held
    back, when it has its connection. `theirs` is the caller's own trace, told as ever."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event in WRITING and asyncio.get_running_loop().time() > until:
            raise TooLate
        if theirs is not None:
            await theirs(event, info)

    return trace


def _content(request: httpx2.Request) -> bytes:
    """The body, where it is at hand without reading a stream."""
    try:
        return request.content
    except httpx2.RequestNotRead:
        return b""


def _replayable(request: httpx2.Request) -> bool:
    """A body of plain bytes can be sent again; a streamed upload is gone once it was read."""
    return isinstance(request.stream, httpx2.ByteStream)


def _asking(request: httpx2.Request, content: bytes) -> httpx2.Request:
    """The same request with this content, to be answered uncompressed: what we asked for on top must
    be taken out of the answer again."""
    headers = request.headers.copy()
    for name in ("content-length", "transfer-encoding"):
        headers.pop(name, None)
    headers["accept-encoding"] = "identity"
    return httpx2.Request(
        request.method, request.url, headers=headers, content=content, extensions=request.extensions
    )


def _tighten(request: httpx2.Request, settings: VendorSettings) -> float:
    """The stricter of the caller's and the policy's transport timeouts wins, one by one.

    Returns how long the caller waits for an answer to begin, its turn in line included: the
    transport knows nothing of a line, so a read timeout shorter than the policy's bounds both.
    """
    policy = settings.timeouts
    ours = {
        "connect": policy.connect,
        "pool": policy.pool,
        "write": policy.write,
        "read": policy.read,
    }
    theirs = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: bound if theirs.get(name) is None else min(bound, theirs[name])
        for name, bound in ours.items()
    }
    read: float = request.extensions["timeout"]["read"]
    return read if read < policy.read else math.inf
