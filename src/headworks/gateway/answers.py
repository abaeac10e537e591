"""What the gateway answers when it refuses: RFC 9457 problems, in the words of each edge."""

from __future__ import annotations

import json
from dataclasses import dataclass

from headworks.problem import REGISTRY

PREFIX = "/-/"
"""Where the gateway's own paths begin; nothing below it reaches a pod."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One refusal of the gateway.

    name         its internal location, below `/-/refused/`
    codes        the nginx statuses it answers (494 is nginx's own for an oversized head)
    reason       its machine-readable name; may be an nginx variable
    retry_after  seconds until coming back may help; None: it cannot
    """

    name: str
    codes: tuple[int, ...]
    reason: str
    title: str
    type: str = "about:blank"
    retry_after: int | None = None

    @property
    def path(self) -> str:
        return f"{PREFIX}refused/{self.name}"

    @property
    def why(self) -> str:
        """Where `retry_after` comes from."""
        return "gateway.per_ip_rate" if self.name == "limited" else "fixed: pods come back in seconds"

    def error_page(self) -> str:
        """The directive that leads here; the original status is kept."""
        return f"error_page {' '.join(map(str, self.codes))} {self.path};"

    def problem(self, status: str | int, reason: str | None = None) -> dict[str, str | int]:
        """The body; `status` and `reason` may be what the edge fills in."""
        problem: dict[str, str | int] = {
            "type": self.type,
            "title": self.title,
            "status": status,
            "layer": "gateway",
            "reason": reason or self.reason,
        }
        if self.retry_after is not None:
            problem["retry_after"] = self.retry_after
        return problem

    def location(self) -> list[str]:
        """The location that answers. The body's `status` is the one nginx is about to send."""
        body = json.dumps(self.problem("$status"), separators=(",", ":"))
        body = body.replace('"$status"', "$status")
        lines = [
            f"location = {self.path} {{",
            "    internal;",
            "    default_type application/problem+json;",
            "    add_header Cache-Control no-store always;",
            "    add_header X-Request-ID $headworks_request_id always;",
        ]
        if self.retry_after is not None:
            lines.append(f"    add_header Retry-After {self.retry_after} always;")
        return [*lines, f"    return {self.codes[0]} '{body}';", "}"]


def answers(retry_after: int) -> tuple[Answer, ...]:
    """Every refusal of the gateway; `retry_after` is the pause of a client over its rate, seconds."""
    capacity = REGISTRY + "temporary-reduced-capacity"
    return (
        Answer(
            "limited",
            (429,),
            "$headworks_limit",
            "Too many requests at the gateway",
            REGISTRY + "quota-exceeded",
            retry_after,
        ),
        Answer("body", (413,), "body-too-large", "The request body is larger than the service accepts"),
        Answer("head", (400, 414, 494), "malformed", "The request head is malformed or too large"),
        Answer("hidden", (404,), "not-found", "There is nothing here"),
        Answer("pod", (502,), "pod-unreachable", "The pod broke off before it answered", capacity, 1),
        Answer("none", (503,), "no-ready-pod", "No pod is ready", capacity, 1),
        Answer("late", (504,), "pod-timeout", "The pod took too long"),
    )
