"""Reading what became of a request."""

from __future__ import annotations

import json

import pytest

from headworks import problem
from headworks.errors import QuotaExceeded, VendorFailed, VendorQuota
from headworks.local.load.outcome import Kind, Outcome, judge
from headworks.local.load.wire import Answer

PROBLEM = "application/problem+json"


@pytest.mark.parametrize("refused", [QuotaExceeded(retry_after=3), VendorQuota(), VendorFailed()])
def test_a_problem_body_tells_which_layer_refused_and_why(refused: QuotaExceeded) -> None:
    status, _, body = problem.render(refused)
    assert judge(Answer(status, PROBLEM, body)) == Outcome(
        Kind.REFUSED, refused.layer, refused.reason, refused.status
    )


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind"),
    [
        (200, "application/json", b"{}", Kind.SERVED),
        (304, "", b"", Kind.SERVED),
        (404, "application/json", b'{"detail":"Not Found"}', Kind.INVALID),
        (422, "application/json", b'{"detail":[]}', Kind.INVALID),
        (429, "text/html", b"<html>", Kind.UNSIGNED),
        (413, "text/html", b"<html>", Kind.UNSIGNED),
        (500, "text/plain", b"Internal Server Error", Kind.UNSIGNED),
        (502, "text/html", b"<html>", Kind.UNSIGNED),
        (503, PROBLEM, b"not json", Kind.UNSIGNED),
        (503, PROBLEM, b'["layer"]', Kind.UNSIGNED),
        (503, PROBLEM, b'{"layer":"gateway"}', Kind.UNSIGNED),
        (503, "application/json", b'{"layer":"gateway","reason":"x"}', Kind.UNSIGNED),
    ],
)
def test_only_a_signed_refusal_counts_as_ours(
    status: int, content_type: str, body: bytes, kind: Kind
) -> None:
    assert judge(Answer(status, content_type, body)).kind is kind


def test_a_stream_is_served_when_its_last_event_is_done() -> None:
    body = b'event: message\ndata: {"text":"a"}\n\nevent: done\ndata: {}\n\n'
    assert judge(Answer(200, "text/event-stream", body)).kind is Kind.SERVED


def test_a_stream_that_ends_in_an_error_event_is_a_refusal_by_the_layer_it_names() -> None:
    error = json.dumps(problem.body(VendorFailed("gone")))
    body = f'event: message\ndata: {{"text":"a"}}\n\nevent: error\ndata: {error}\n\n'.encode()
    assert judge(Answer(200, "text/event-stream", body)) == Outcome(
        Kind.REFUSED, "vendor", "vendor-error", 200
    )


def test_a_stream_that_just_ends_is_broken() -> None:
    body = b'event: message\ndata: {"text":"a"}\n\n'
    assert judge(Answer(200, "text/event-stream", body)).kind is Kind.BROKEN
