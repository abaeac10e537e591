"""Events in, metrics and logs out."""

from headworks.telemetry.events import (
    Called,
    Changed,
    Decided,
    Event,
    Queued,
    Rejected,
    Served,
    Shadowed,
    Told,
    Waited,
)
from headworks.telemetry.funnel import Sink, Telemetry

__all__ = [
    "Called",
    "Changed",
    "Decided",
    "Event",
    "Queued",
    "Rejected",
    "Served",
    "Shadowed",
    "Sink",
    "Telemetry",
    "Told",
    "Waited",
]
