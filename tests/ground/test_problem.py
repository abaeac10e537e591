"""Errors: the tree drawn in the docstring is the tree, and a refusal reads as RFC 9457 asks."""

from __future__ import annotations

import inspect
import json
import math
import re

import pytest

from headworks import errors, problem
from headworks.errors import QuotaExceeded, Refused

REFUSALS = sorted(Refused.__subclasses__(), key=lambda kind: kind.__name__)


def drawn() -> dict[str, tuple[str, str]]:
    """Name → (parent, the words beside it), read from the drawing."""
    tree: dict[str, tuple[str, str]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)(?:\s{2,}(.*))?$", line)
        if found:
            depth = (found.start(2) - 4) // 4
            above[depth] = found[2]
            tree[found[2]] = (above.get(depth - 1, "Exception"), found[3] or "")
    return tree


def test_the_drawn_tree_is_the_tree() -> None:
    """Every exception of the module stands in the drawing, under its own parent."""
    kinds = {
        name: kind.__base__.__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == kinds


@pytest.mark.parametrize("kind", REFUSALS)
def test_the_drawing_tells_status_layer_and_reason(kind: type[Refused]) -> None:
    words = drawn()[kind.__name__][1].split()
    assert words[:3] == [str(kind.status), kind.layer, kind.reason]


def test_reasons_are_unique() -> None:
    assert len({kind.reason for kind in REFUSALS}) == len(REFUSALS)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_becomes_a_problem_body(kind: type[Refused]) -> None:
    """Status, type, layer and reason, whoever refused."""
    status, headers, content = problem.render(kind("too much", retry_after=1.2, limit="free"))
    fields = dict(headers)
    body = json.loads(content)
    assert status == body["status"] == kind.status
    assert fields[b"content-type"] == b"application/problem+json"
    assert fields[b"content-length"] == str(len(content)).encode()
    assert fields[b"retry-after"] == b"2"
    assert (body["layer"], body["reason"], body["limit"]) == (kind.layer, kind.reason, "free")
    assert (body["detail"], body["title"], body["retry_after"]) == ("too much", kind.title, 1.2)
    assert body["type"] == "about:blank" or body["type"].startswith(problem.REGISTRY)


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (None, None),
        (math.inf, None),
        (0.0, "1"),
        (0.001, "1"),
        (1.0, "1"),
        (1.0000000001, "1"),
        (1.01, "2"),
        (59.5, "60"),
    ],
)
def test_retry_after_is_whole_seconds_rounded_up(seconds: float | None, header: str | None) -> None:
    assert problem.retry_after_header(seconds) == header


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_without_a_time_to_come_back_none_is_given(seconds: float | None) -> None:
    """Neither header nor field; infinity would not even be JSON."""
    _, headers, content = problem.render(QuotaExceeded(retry_after=seconds))
    assert b"retry-after" not in dict(headers)
    assert "retry_after" not in json.loads(content)


def test_extra_headers_come_last() -> None:
    _, headers, _ = problem.render(QuotaExceeded(), [(b"ratelimit", b"x")])
    assert headers[-1] == (b"ratelimit", b"x")


def test_a_policy_error_lists_every_problem() -> None:
    error = errors.PolicyError("a.toml", [errors.Problem("x.y", "is wrong"), errors.Problem("", "too")])
    assert str(error) == "a.toml: x.y: is wrong\na.toml: too"


def test_a_foreign_origin_names_both_and_the_remedy() -> None:
    error = errors.ForeignOrigin(vendor="llm", asked="https://a", allowed="https://b")
    assert all(word in str(error) for word in ("https://a", "https://b", "works.vendor('llm').base_url"))
