"""Layer 2: can this pod take traffic. Local state only; permits come from outside."""

from headworks.health.lifecycle import Termination
from headworks.health.management import Management, PortTaken
from headworks.health.probes import HEALTH, METRICS, READY, Pages, Probes
from headworks.health.readiness import Health, Permit

__all__ = [
    "HEALTH",
    "METRICS",
    "READY",
    "Health",
    "Management",
    "Pages",
    "Permit",
    "PortTaken",
    "Probes",
    "Termination",
]
