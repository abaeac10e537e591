"""Layer 4: who gets how much. Shared state, kept in the store."""

from headworks.fairness.gate import Fairness, FairnessGate, Rules
from headworks.fairness.known import KnownRefusals
from headworks.fairness.limits import Limits
from headworks.fairness.routes import Routes, cancel_on_disconnect, cost, exempt, lasting, limit

__all__ = [
    "Fairness",
    "FairnessGate",
    "KnownRefusals",
    "Limits",
    "Routes",
    "Rules",
    "cancel_on_disconnect",
    "cost",
    "exempt",
    "lasting",
    "limit",
]
