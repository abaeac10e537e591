"""Headers and translated refusals."""

from __future__ import annotations

import json
import types
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.current import Criticality
from headworks.errors import QuotaExceeded, Refused, VendorFailed, VendorOpen, VendorQuota
from headworks.fairness.headers import fields, told
from headworks.fairness.limits import Asked
from headworks.fairness.refusal import answered, judged, kept, passing, refusal
from headworks.fairness.translate import EXTENSION, refused_behind
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.problem import render
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question
from headworks.telemetry import Decided, Telemetry
from headworks.vendor import REFUSED
from headworks.verdict import NEVER, LimitState, Verdict

TIER = LimitState("tier:free", 10, 60.0, True, 4, 41.2, 0.0)
FULL = LimitState('endpoint:/a"b\\é', 3, 0.5, False, 0, 55.0, 17.3)
NEVER_FITS = LimitState("x", 3, 60.0, False, 3, 0.0, NEVER)


def test_draft_11_lists_every_limit_once() -> None:
    """Structured fields: names quoted and escaped, whole seconds, at least one of window."""
    headers = dict(fields("draft-11", Verdict(False, 17.3, (TIER, FULL))))
    assert headers == {
        b"ratelimit-policy": b'"tier:free";q=10;w=60, "endpoint:/a\\"b\\\\?";q=3;w=1',
        b"ratelimit": b'"tier:free";r=4;t=42, "endpoint:/a\\"b\\\\?";r=0;t=18',
    }


STATES = st.tuples(
    st.sampled_from(["tier:free", "endpoint:/100%/%d", 'a"b\\é']),
    st.integers(1, 10**6),
    st.sampled_from([0.5, 60.0, 86_400.0 * 365]),
    st.booleans(),
    st.integers(-3, 10**6),
    st.floats(0, 86_400.0 * 365),
    st.sampled_from([1e-7, 0.0005, 1.0, 17.3, NEVER]) | st.floats(1e-7, 86_400.0 * 365),
)
DIALECTS = st.sampled_from(["draft-11", "x-ratelimit", "off"])
Told = list[tuple[str, int, float, bool, int, float, float]]


def asked_and_told(states: Told, dialect: str) -> tuple[Asked, Verdict]:
    """What callers with such limits are asked, and a verdict of a store on all of them."""
    asks = tuple(Ask(name, name, Window.of(limit, period)) for name, limit, period, *_ in states)
    told_of = tuple(
        LimitState(*state[:6], 0.0 if state[3] else state[6]) for state in map(LimitState._make, states)
    )
    made = told(dialect, [(ask.name, ask.shape) for ask in asks])
    asked = Asked(asks, kept={ask.name: kept(ask.name, ask.shape) for ask in asks}, told=made)
    again = max(state.retry_after for state in told_of)
    return asked, Verdict(all(state.allowed for state in told_of), again, told_of)


def by_name(state: tuple[Any, ...]) -> str:
    return str(state[0])


@given(st.lists(STATES, min_size=1, max_size=3, unique_by=by_name), DIALECTS)
def test_what_is_prepared_of_a_route_s_limits_says_the_same(states: Told, dialect: str) -> None:
    """One way to say it is made for each route, the other for any verdict."""
    asked, verdict = asked_and_told(states, dialect)
    seconds = None if verdict.allowed else verdict.retry_after
    assert asked.told(verdict, seconds) == fields(dialect, verdict, seconds)


@given(
    st.lists(STATES, min_size=1, max_size=3, unique_by=by_name),
    DIALECTS,
    st.sampled_from(Criticality),
    st.sampled_from(["as it is", "from memory", "alone", "alone, and nothing known"]),
)
def test_a_refusal_that_is_written_from_what_is_kept_is_the_one_that_is_raised(
    states: Told, dialect: str, criticality: Criticality, how: str
) -> None:
    """Byte for byte, with the same event, whoever decided: one is written ahead of the application, the
    other inside of it."""
    asked, verdict = asked_and_told([(*states[0][:3], False, *states[0][4:]), *states[1:]], dialect)
    if how == "from memory":  # which tells of the limits that refuse, and of no other
        refusing = tuple(state for state in verdict.limits if not state.allowed)
        verdict = verdict._replace(limits=refusing)
    elif how == "alone":
        parts = tuple(state._replace(limit=state.limit // 2 + 1) for state in verdict.limits)
        verdict = verdict._replace(degraded=True, limits=parts)
    elif how == "alone, and nothing known":
        verdict = Verdict(False, 5.0, degraded=True)
    refused, event = refusal(verdict, asked, criticality)
    raised = render(refused, fields(dialect, verdict, refused.retry_after))
    assert answered(verdict, asked, criticality) == (raised, event)


@given(st.lists(STATES, min_size=1, max_size=3, unique_by=by_name), st.sampled_from(Criticality))
def test_what_is_told_of_those_who_pass_is_of_the_tightest(
    states: Told, criticality: Criticality
) -> None:
    asked, verdict = asked_and_told([(*state[:3], True, *state[4:]) for state in states], "off")
    tightest = min(verdict.limits, key=lambda state: state.remaining / state.limit)
    fifth = tightest.limit - tightest.limit * 4 // 5
    near = min(1, max(0, fifth - tightest.remaining))
    said = Decided("fairness", True, "", tightest.name, criticality.name.lower(), near)
    assert passing(verdict, asked, criticality) == said


def test_x_ratelimit_speaks_of_the_tightest() -> None:
    headers = dict(fields("x-ratelimit", Verdict(False, 17.3, (TIER, FULL))))
    assert headers == {
        b"x-ratelimit-limit": b"3",
        b"x-ratelimit-remaining": b"0",
        b"x-ratelimit-reset": b"18",
    }


@pytest.mark.parametrize("verdict", [None, Verdict(True, 0.0)])
def test_without_limits_nothing_is_said(verdict: Verdict | None) -> None:
    for dialect in ("draft-11", "x-ratelimit", "off"):
        assert fields(dialect, verdict) == []
    assert fields("off", Verdict(True, 0.0, (TIER,))) == []


@pytest.mark.parametrize(
    ("dialect", "name", "said"),
    [("draft-11", b"ratelimit", b'"x";r=3;t=0'), ("x-ratelimit", b"x-ratelimit-reset", b"0")],
)
def test_no_wait_is_named_for_what_never_fits(dialect: str, name: bytes, said: bytes) -> None:
    """Neither infinity nor a month leaves in a header: everything there is, is there already."""
    assert dict(fields(dialect, Verdict(False, NEVER, (NEVER_FITS,))))[name] == said


@pytest.mark.parametrize(
    ("shape", "most"), [(Window.of(60, 60), 60), (Bucket.of(60, 60, burst=5), 5)], ids=str
)
async def test_a_cost_that_never_fits_is_told_so(shape: Shape, most: int) -> None:
    asks: tuple[Ask, ...] = (Ask("wide", "w", Window.of(999, 60), 100), Ask("cap", "k", shape, 100))
    verdict = await MemoryStore().ask(Question(asks))
    telemetry = Telemetry()
    refused = judged(verdict, Asked(asks), Criticality.DEFAULT, telemetry)
    assert refused is not None
    assert refused.limit == "cap"
    assert refused.detail == f"this costs 100 of cap, which never lets more than {most} through at once"
    alone = judged(verdict._replace(degraded=True), Asked(asks), Criticality.DEFAULT, telemetry)
    assert alone is not None
    assert "keeps to its own part" in alone.detail, (
        "a pod alone lets less through, and for another reason"
    )
    _, headers, body = render(refused)
    assert b"retry-after" not in dict(headers)
    assert "retry_after" not in json.loads(body)


def test_the_vendor_s_extension_is_the_one_looked_for() -> None:
    """Two layers that may not import each other agree on the name."""
    assert EXTENSION == REFUSED


def response(refused: Refused) -> httpx2.Response:
    request = httpx2.Request("POST", "https://vendor.example/v1")
    return httpx2.Response(429, request=request, extensions={EXTENSION: refused})


def sdk_error(refused: Refused) -> Exception:
    return openai.RateLimitError("vendor says no", response=response(refused), body=None)


def chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


QUOTA, OPEN = VendorQuota(retry_after=7.0), VendorOpen(retry_after=30.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QUOTA, QUOTA),
        (sdk_error(QUOTA), QUOTA),
        (httpx2.HTTPStatusError("x", request=response(OPEN).request, response=response(OPEN)), OPEN),
        (chained(RuntimeError("wrapped"), sdk_error(QUOTA)), QUOTA),
        (ExceptionGroup("fan-out", [sdk_error(QUOTA), OPEN]), OPEN),
        (ExceptionGroup("one", [ExceptionGroup("two", [QUOTA])]), QUOTA),
        (ExceptionGroup("with a defect", [QUOTA, KeyError("bug")]), None),
        (ValueError("bug"), None),
        (openai.APIConnectionError(request=response(QUOTA).request), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_refusal_behind_an_exception(error: Exception, expected: Refused | None) -> None:
    """Itself, in the SDK's response, as cause, or as all members of a group."""
    assert refused_behind(error) is expected


def test_a_refusal_merely_handled_before_is_not_the_cause() -> None:
    """A bug in an `except` block is a bug."""
    with pytest.raises(KeyError) as caught:  # noqa: PT012  # the handler is what is tested
        try:
            raise VendorFailed
        except Refused:
            {}["bug"]
    assert refused_behind(caught.value) is None


def test_odd_responses_and_circles_of_causes_end() -> None:
    """Neither a response of another kind nor a circle breaks the search."""
    odd: Any = ValueError("odd")
    odd.response = types.SimpleNamespace(extensions={EXTENSION: "no refusal"})
    assert refused_behind(odd) is None
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert refused_behind(first) is None
    assert refused_behind(chained(ValueError(), QuotaExceeded())) is not None
