"""Which limits a request is held to, and what they are called in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from headworks.fairness.headers import Told, told
from headworks.fairness.refusal import Kept, kept
from headworks.fairness.routes import Matched, Whose, normalised, shape_of
from headworks.identity import Identity
from headworks.limits.shapes import Shape
from headworks.policy.settings import FairnessSettings, Mode, WhenDown
from headworks.policy.units import Rate, duration_text
from headworks.problem import Headers
from headworks.store.protocol import Ask, FinalAsk, Question
from headworks.verdict import Verdict

LONGEST: Final = 128
"""Characters of a route's template that go into a key; a longer one is hashed."""
PLANS: Final = 10_000
"""Plans kept, so that an application which goes on adding routes grows by none of its old ones."""
ASKED: Final = 10_000
"""Questions of known callers kept, each of one route."""
STRANGERS: Final = 32
"""Questions of unknown ones kept: enough for those who ask many times a moment, and nobody who comes
under ever new addresses pushes out a known one, or leaves much to the garbage collector."""

_ORDER: Final[tuple[Whose, ...]] = ("user", "tenant", "all")
_MODES: Final[tuple[Mode, ...]] = ("enforce", "shadow", "off")

Wanted = tuple[Rate, Whose, Mode]
_By = tuple[str, str, str, Matched | None]
"""User, tenant, tier and route."""


class _Rule(NamedTuple):
    """One limit: what verdicts call it, whose it is, the end of its key, its shape."""

    name: str
    whose: Whose
    end: str
    shape: Shape


Asks = tuple[Ask, ...]


def _nothing(verdict: Verdict, retry_after: float | None = None) -> Headers:
    return []


class _Plan(NamedTuple):
    """What every caller of one tier is asked on one route; `kept` and `told` as of `Asked`."""

    enforced: tuple[_Rule, ...]
    shadow: tuple[_Rule, ...]
    cost: int
    kept: Mapping[str, Kept]
    told: Told


class Asked(NamedTuple):
    """What a request is asked for: in earnest, all together, and only to see.

    question  the one question that `asks` are; None where there are none
    kept      what is said of the limits of `asks`, by name, whatever the verdict's numbers are
    told      makes the headers of a verdict
    """

    asks: Asks = ()
    shadow: Asks = ()
    question: Question | None = None
    kept: Mapping[str, Kept] = {}
    told: Told = _nothing

    def costing(self, units: int) -> Asked:
        """The same limits, asked for `units`."""
        asks = tuple(ask._replace(cost=units) for ask in self.asks)
        return self._replace(
            asks=asks,
            shadow=tuple(ask._replace(cost=units) for ask in self.shadow),
            question=Question(asks) if asks else None,
        )


NOTHING: Final = Asked()
"""Asked of whom nothing is asked."""


def when_down_of(settings: FairnessSettings) -> dict[str, WhenDown]:
    """What the policy says of single limits without the store, by the names that verdicts call them."""
    ways: dict[str, WhenDown | None] = {}
    for name, tier in settings.tiers.items():
        ways[f"tier:{name}"] = tier.when_down
        if tier.tenant_rate is not None:
            ways[f"tenant:{name}"] = tier.tenant_rate.when_down
    if settings.total_rate is not None:
        ways["total"] = settings.total_rate.when_down
    for path, limits in settings.endpoints.items():
        parts = _parts((limit.rate, limit.scope) for limit in limits)
        for limit, part in zip(limits, parts, strict=True):
            ways[f"endpoint{part}:{normalised(path)}"] = limit.when_down
    return {name: way for name, way in ways.items() if way is not None}


def _parts(limits: Iterable[tuple[Rate, Whose]]) -> Iterator[str]:
    """What tells the limits of one route apart in their names: whose they are, and, of several with one
    scope, the period of all but the first."""
    seen: set[Whose] = set()
    for rate, whose in limits:
        part = "" if whose == "user" else f":{whose}"
        yield f"{part}:{duration_text(rate.period)}" if whose in seen else part
        seen.add(whose)


class Limits:
    """The policy's limits as questions to the store.

    What a request was charged is never given back. A cluster keeps together what has the same tag, the
    first part of a key in braces: all limits of a caller and of its tenant have the tenant's, those of
    all callers together one of their own. The service's name is part of both: services that share a
    store share no counts. A limit keeps its key, and so its count, when its rate changes.
    """

    def __init__(self, settings: FairnessSettings, *, service: str) -> None:
        self._service, self._mode, self._dialect = service, settings.mode, settings.headers
        self._tiers = {name: tuple(self._tier(settings, name)) for name in settings.tiers}
        self._endpoints = {
            normalised(path): [(limit.rate, limit.scope, limit.mode) for limit in limits]
            for path, limits in settings.endpoints.items()
        }
        for path, wanted in self._endpoints.items():  # whatever has no shape is to be heard of now
            self._endpoint(path, wanted)
        self._exempt = {normalised(path) for path in settings.exempt}
        self._plans: dict[tuple[str, Matched | None], _Plan] = {}
        self._asked: dict[_By, Asked] = {}
        self._strangers: dict[_By, Asked] = {}

    def asks(self, identity: Identity, matched: Matched | None) -> Asked:
        """The limits of a caller on a route. A caller that comes again is asked the same again: keys
        and question are made once, as long as they are remembered."""
        before = self._asked if identity.known else self._strangers
        by = (identity.user, identity.tenant, identity.tier, matched)
        return before.get(by) or self._ask(identity, matched, before, by)

    def paths(self) -> set[str]:
        """The templates that the policy names."""
        return set(self._endpoints) | self._exempt

    def _ask(
        self, identity: Identity, matched: Matched | None, before: dict[_By, Asked], by: _By
    ) -> Asked:
        plan = self._plans.get((identity.tier, matched)) or self._plan(identity.tier, matched)
        enforced, shadow, cost, kept, told = plan
        if len(before) >= (ASKED if identity.known else STRANGERS):
            before.clear()
        asks = self._named(enforced, cost, identity) if enforced else ()
        # Half the time of their own constructors: that no key is there twice is a matter of the plan.
        question = tuple.__new__(Question, (asks, 0.0, None, "", 0.0)) if asks else None
        watched = self._named(shadow, cost, identity) if shadow else ()
        asked = before[by] = tuple.__new__(Asked, (asks, watched, question, kept, told))
        return asked

    def _named(self, rules: tuple[_Rule, ...], cost: int, identity: Identity) -> Asks:
        user, tenant = identity.user, identity.tenant
        ours = f"{{user:{self._service}:{tenant}}}:"
        own = ours if user == tenant else f"{ours}{user}:"
        asks = []
        for name, whose, end, shape in rules:
            key = own + end if whose == "user" else ours + end if whose == "tenant" else end
            asks.append(tuple.__new__(FinalAsk, (name, key, shape, cost)))
        return tuple(asks)

    def _plan(self, tier: str, matched: Matched | None) -> _Plan:
        """Made once per tier and route."""
        cost = matched.cost if matched else 1
        rules: list[tuple[_Rule, Mode]] = []
        if matched is None or not (matched.exempt or matched.template in self._exempt):
            rules += self._tiers[tier]
            if matched is not None:
                marked: list[Wanted] = [(rate, whose, "enforce") for rate, whose in matched.limits]
                rules += self._endpoint(
                    matched.template, self._endpoints.get(matched.template) or marked
                )
            rules.sort(key=lambda rule: _ORDER.index(rule[0].whose))
        enforced = tuple(rule for rule, mode in rules if mode == "enforce")
        # Raises where two would share a state: questions are made without looking (`_ask`).
        Question(tuple(Ask(rule.name, rule.end, rule.shape) for rule in enforced))
        plan = _Plan(
            enforced,
            tuple(rule for rule, mode in rules if mode == "shadow"),
            cost,
            {rule.name: kept(rule.name, rule.shape) for rule in enforced},
            told(self._dialect, [(rule.name, rule.shape) for rule in enforced]),
        )
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[tier, matched] = plan
        return plan

    def _tier(self, settings: FairnessSettings, name: str) -> Iterable[tuple[_Rule, Mode]]:
        tier, total = settings.tiers[name], settings.total_rate
        yield _Rule(f"tier:{name}", "user", "tier", shape_of(tier.rate)), self._least(tier.mode)
        if (shared := tier.tenant_rate) is not None:
            rule = _Rule(f"tenant:{name}", "tenant", f"tenant:{name}", shape_of(shared.rate))
            yield rule, self._least(shared.mode)
        if total is not None:
            yield (
                _Rule("total", "all", self._all("total"), shape_of(total.rate)),
                self._least(total.mode),
            )

    def _endpoint(self, template: str, wanted: Iterable[Wanted]) -> list[tuple[_Rule, Mode]]:
        """The rules of one route."""
        rules: list[tuple[_Rule, Mode]] = []
        limits = tuple(wanted)
        parts = _parts((rate, whose) for rate, whose, _ in limits)
        for (rate, whose, mode), part in zip(limits, parts, strict=True):
            end = f"endpoint{part}:{_bounded(template)}"
            key = self._all(end) if whose == "all" else end
            rule = _Rule(f"endpoint{part}:{template}", whose, key, shape_of(rate))
            rules.append((rule, self._least(mode)))
        return rules

    def _all(self, end: str) -> str:
        return f"{{all:{self._service}}}:{end}"

    def _least(self, mode: Mode) -> Mode:
        """The weaker of a limit's mode and everybody's."""
        return max(mode, self._mode, key=_MODES.index)


def _bounded(template: str) -> str:
    if len(template) <= LONGEST:
        return template
    return hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
