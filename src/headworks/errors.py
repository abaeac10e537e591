"""What can go wrong, drawn once.

    HeadworksError
    ├── PolicyError            the policy file cannot be used; lists every problem found
    ├── ForeignOrigin          a vendor client was pointed at an origin the policy does not name
    └── Refused                a layer said no: who, why, and when to come back
        ├── HeadTooLarge       431  request    head-too-large      its head does not end
        ├── BadDeadline        400  request    bad-deadline        no deadline can be read in it
        ├── CallerLeft         499  request    caller-left         nobody is there to be answered
        ├── PodLeaving         503  request    pod-leaving         this pod ends before the request does
        ├── PodSaturated       503  admission  pod-saturated       this pod is full
        ├── LoadShed           503  admission  load-shed           pressure; less critical goes first
        ├── QuotaExceeded      429  fairness   quota-exceeded      the caller used up a limit
        ├── DeadlineExceeded   504  request    deadline-exceeded   the request's whole budget is spent
        ├── QueueTimeout       503  vendor     queue-timeout       the line would take too long
        ├── VendorOpen         503  vendor     vendor-open         breaker open or cool-down running
        ├── VendorQuota        429  vendor     vendor-quota        no send time within the horizon
        ├── CallTimeout        504  vendor     call-timeout        the vendor took too long
        └── VendorFailed       502  vendor     vendor-error        the vendor failed or is unreachable

`Refused` is the only one a client of the service ever sees, as `application/problem+json`
(`headworks.problem`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from headworks.verdict import Verdict


class HeadworksError(Exception):
    """Base of everything headworks raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a policy file: where it stands, what is wrong, what would be right."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PolicyError(HeadworksError):
    """The policy cannot be used. `problems` holds every mistake found, not only the first."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class ForeignOrigin(HeadworksError):
    """A request through a vendor's client names an origin that is not the vendor's in the policy."""

    def __init__(self, *, vendor: str, asked: str, allowed: str) -> None:
        self.vendor, self.asked, self.allowed = vendor, asked, allowed
        super().__init__(
            f"the client of vendor '{vendor}' was asked to call {asked}, but the policy's "
            f"vendors.{vendor}.base_url is {allowed}; pass base_url=works.vendor('{vendor}').base_url"
        )


class Refused(HeadworksError):
    """A layer refused. Carries which layer, why, and how many seconds to wait before asking again.

    `retry_after` is in seconds; None means that coming back will not help or cannot be foreseen.
    `limit` names the limit that refused, `verdict` the reply that decided, where there is one.
    """

    status: ClassVar[int] = 503
    layer: ClassVar[str] = "request"
    reason: ClassVar[str] = "refused"
    title: ClassVar[str] = "The request was refused"

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after: float | None = None,
        limit: str | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        self.detail = detail or self.title
        self.retry_after = retry_after
        self.limit = limit
        self.verdict = verdict
        super().__init__(f"{self.layer}: {self.reason}: {self.detail}")


class PodSaturated(Refused):
    status, layer, reason = 503, "admission", "pod-saturated"
    title = "This pod is serving as many requests as it may"


class LoadShed(Refused):
    status, layer, reason = 503, "admission", "load-shed"
    title = "The pod is under pressure and sheds less critical requests"


class QuotaExceeded(Refused):
    status, layer, reason = 429, "fairness", "quota-exceeded"
    title = "A request limit is used up"


class DeadlineExceeded(Refused):
    status, layer, reason = 504, "request", "deadline-exceeded"
    title = "The request's time budget is spent"


class BadDeadline(Refused):
    status, layer, reason = 400, "request", "bad-deadline"
    title = "The request's own deadline cannot be read"


class HeadTooLarge(Refused):
    status, layer, reason = 431, "request", "head-too-large"
    title = "The request's head is too large"


class CallerLeft(Refused):
    status, layer, reason = 499, "request", "caller-left"
    title = "The caller left before the answer was complete"


class PodLeaving(Refused):
    status, layer, reason = 503, "request", "pod-leaving"
    title = "This pod ends before the request does"


class QueueTimeout(Refused):
    status, layer, reason = 503, "vendor", "queue-timeout"
    title = "The wait for the vendor would be too long"


class VendorOpen(Refused):
    status, layer, reason = 503, "vendor", "vendor-open"
    title = "The vendor is not being called for now"


class VendorQuota(Refused):
    status, layer, reason = 429, "vendor", "vendor-quota"
    title = "The vendor's quota is used up"


class CallTimeout(Refused):
    status, layer, reason = 504, "vendor", "call-timeout"
    title = "The vendor did not answer in time"


class VendorFailed(Refused):
    status, layer, reason = 502, "vendor", "vendor-error"
    title = "The vendor failed"
