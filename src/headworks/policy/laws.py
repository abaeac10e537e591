"""The sizing laws: whether a valid policy's numbers fit together.

Each law is a small function that yields `Finding`s with the arithmetic and the value that would do.
`laws_of_time` holds those about waiting, `laws_of_entry` those about coming in, `laws_of_vendors`
those about going out, `laws_of_edge` those about gateways and deployment.
"""

from __future__ import annotations

from headworks.policy import laws_of_edge, laws_of_entry, laws_of_time, laws_of_vendors
from headworks.policy.findings import Finding as Finding
from headworks.policy.settings import Policy

LAWS = (*laws_of_time.LAWS, *laws_of_entry.LAWS, *laws_of_vendors.LAWS, *laws_of_edge.LAWS)

_ORDER = ("error", "warning", "note")


def check(policy: Policy) -> list[Finding]:
    """Every law broken, errors first; a sound policy yields notes at most."""
    found = [finding for law in LAWS for finding in law(policy)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))
