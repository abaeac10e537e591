"""What a sizing law says when it is broken, and the words the laws share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from headworks.policy.settings import Policy
from headworks.policy.units import Rate
from headworks.policy.vendor_settings import VendorSettings

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One law broken: where, what is wrong with the arithmetic, what value would do.

    severity  `error`: the policy cannot work as it says; `warning`: it works worse than it could;
              `note`: worth knowing, nothing to mend
    """

    path: str
    message: str
    remedy: str
    severity: Severity


Findings = Iterator[Finding]


def tightest(vendor: VendorSettings) -> float:
    """Requests per second at which the account's quotas let this service go; inf without one on requests
    over less than an hour. A quota per day says how many, not how fast."""
    paces = (rate.per_second for rate in vendor.quota if rate.unit == "requests" and not rate.counted)
    return min(paces, default=math.inf) * vendor.share


def per_minute(per_second: float) -> str:
    """A pace as people say it: `500/min`."""
    return f"{number(per_second * 60)}/min"


def paced(rate: Rate, unit: str = "min") -> str:
    """A rate, and what it is per second ("s") or minute ("min") where it does not say so itself."""
    pace = f"{number(rate.per_second * (60 if unit == 'min' else 1))}/{unit}"
    return pace if pace == str(rate) else f"{rate} = {pace}"


def number(value: float) -> str:
    """A number with at most three digits after the point, and none that say nothing."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def fleet_slots(policy: Policy, vendor: VendorSettings) -> int:
    """Calls to a vendor that all pods together may have in flight."""
    return policy.deploy.replicas * vendor.slots


def implies(rate: Rate, other: Rate) -> bool:
    """Whether whoever keeps `rate` keeps `other` too, so that `other` never decides."""
    if rate.unit != other.unit or other.burst is not None:
        return False
    if rate.burst is not None:
        most = rate.burst + math.ceil(rate.per_second * other.period)
    else:
        most = rate.amount * math.ceil(other.period / rate.period - 1e-9)
    return most <= other.amount
