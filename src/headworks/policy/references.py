"""Names in one place of the policy that must exist in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headworks.errors import Problem
from headworks.policy.mistakes import dotted, key_shown, nearest
from headworks.policy.profiles import profile_names


def broken_references(tables: Mapping[str, Any]) -> list[Problem]:
    """Every name that leads nowhere.

    Works on the tables as they were read, so that these mistakes are told together with all others;
    what is not even of the right kind is left to validation.
    """
    fairness = _table(tables.get("fairness"))
    tiers = _table(fairness.get("tiers"))
    problems = []
    if tiers:
        default = fairness.get("default_tier")
        if isinstance(default, str) and default not in tiers:
            problems.append(_unknown(("fairness", "default_tier"), "tier", default, tiers))
        for key, known in _table(fairness.get("keys")).items():
            tier = known.get("tier") if isinstance(known, Mapping) else known
            if isinstance(tier, str) and tier not in tiers:
                problems.append(_unknown(("fairness", "keys", key_shown(str(key))), "tier", tier, tiers))
    profiles = dict.fromkeys(profile_names())
    for name, vendor in _table(tables.get("vendors")).items():
        profile = _table(vendor).get("profile")
        if isinstance(profile, str) and profile not in profiles:
            problems.append(_unknown(("vendors", str(name), "profile"), "profile", profile, profiles))
    return problems


def _unknown(location: tuple[str, ...], what: str, name: str, known: Mapping[str, Any]) -> Problem:
    return Problem(dotted(location), f"there is no {what} {name!r}; {nearest(name, map(str, known))}")


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
