"""Layer 4: who gets how much. Shared state, kept in the store."""

from headworks.fairness.ahead import Ahead
from headworks.fairness.gate import Fairness, FairnessGate, Rules
from headworks.fairness.limits import Limits
from headworks.fairness.routes import Routes, cancel_on_disconnect, cost, exempt, lasting, limit

__all__ = [
    "Ahead",
    "Fairness",
    "FairnessGate",
    "Limits",
    "Routes",
    "Rules",
    "cancel_on_disconnect",
    "cost",
    "exempt",
    "lasting",
    "limit",
]
