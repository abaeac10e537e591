"""Builds every layer from the policy and installs them on an application.

The order of the way in is the order of `Headworks._stack`: probes, refusals that are known already,
admission, whatever middleware the application has, fairness, the application. Everything lives on the
`Headworks` object, so that several can live in one process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from headworks import fairness
from headworks.address import Network
from headworks.admission import AdmissionGate, Answers
from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.fairness import Fairness, FairnessGate, Routes
from headworks.health import Health, Pages, Probes, Termination
from headworks.identity import Resolver
from headworks.limits.shapes import Window
from headworks.policy.laws_of_entry import HEADROOM
from headworks.policy.load import load
from headworks.policy.settings import CLEANUP, LAST_WORDS, Policy
from headworks.store.ladder import FAILURES
from headworks.store.protocol import Ask, Question, Store
from headworks.telemetry import Sink, Telemetry
from headworks.telemetry.prometheus import PrometheusSink
from headworks.vendor import Vendor
from headworks.works.build import (
    ahead_of,
    bounds_of,
    gate_of,
    identifier_of,
    management_of,
    pressure_of,
    readmit,
    rules_of,
    slots_of,
    store_of,
    vendors_of,
    without_store,
)
from headworks.works.door import Door, clear
from headworks.works.permit import permit_of
from headworks.works.reload import Change, PolicyWatch, signature

log = logging.getLogger("headworks")

SOONEST = 0.5
"""Seconds that closing one thing gets at least, however little is left of the pod's time."""

App = TypeVar("App", bound=Starlette)


class Headworks:
    """Every layer of one service, in this process.

    policy      the whole policy
    resolve     async (key) -> name of a tier or a `Caller`, or None for an unknown key; beside the
                policy's table
    store       shared state; default: what the policy names, or this process's memory
    transports  HTTP transports by vendor name, instead of real connections
    sinks       listeners for every event, beside the Prometheus one
    pod         this pod's name; default: HEADWORKS_POD, else host name and process id
    rng, now    chance and the wall clock
    """

    cost = staticmethod(fairness.cost)
    limit = staticmethod(fairness.limit)
    lasting = staticmethod(fairness.lasting)
    cancel_on_disconnect = staticmethod(fairness.cancel_on_disconnect)
    exempt = staticmethod(fairness.exempt)

    def __init__(
        self,
        policy: Policy,
        *,
        resolve: Resolver | None = None,
        store: Store | None = None,
        transports: Mapping[str, httpx2.AsyncBaseTransport] | None = None,
        sinks: Iterable[Sink] = (),
        pod: str | None = None,
        rng: random.Random | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.policy = policy
        self.pod = pod or os.environ.get("HEADWORKS_POD") or f"{socket.gethostname()}-{os.getpid()}"
        self._metrics, rng = PrometheusSink(), rng or random.Random()
        self.telemetry = Telemetry(self._metrics, *sinks)
        self._reaper, self._home = Reaper(), OneLoop()
        self._without_store = without_store(policy)
        if store is None:
            store = store_of(policy, self.telemetry, rng, self._without_store)
        self._store = store
        rules = rules_of(policy)
        self._identifier = identifier_of(rules.callers, resolve, self.telemetry)
        self._answers = Answers(policy.admission.write_stall)
        self._pressure = pressure_of(policy, self.telemetry, now)
        self._slots = slots_of(policy, self._pressure, rng)
        self._most = policy.admission.server_backstop - HEADROOM
        self._fairness = Fairness(
            rules, store=self._store, identifier=self._identifier, telemetry=self.telemetry
        )
        self._health = Health(
            policy.health,
            full_for=lambda: self._slots.statistics().full_for,
            permit=permit_of(policy, self._store, self.pod),
            facts=self._facts,
            telemetry=self.telemetry,
            rng=rng,
        )
        self.telemetry.add(self._health)
        self._pages = Pages(self._health, metrics=self._metrics.render)
        self._management = management_of(policy, self._pages)
        delay, patience = policy.health.drain_delay, policy.drain_timeout
        self._termination = Termination(delay, patience, leaving=self._leave, over=self._answers.end)
        self._vendors = vendors_of(
            policy,
            store=self._store,
            telemetry=self.telemetry,
            reaper=self._reaper,
            home=self._home,
            pod=self.pod,
            rng=rng,
            now=now,
            transports=transports or {},
        )
        self._show_gauges()
        self._app: Starlette | None = None
        self._routes: Routes | None = None
        self._policy_watch: PolicyWatch | None = None
        self._gate: AdmissionGate | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def load(
        cls,
        path: Path | str = "headworks.toml",
        *,
        resolve: Resolver | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Headworks:
        """The works of a policy file; `PolicyError` lists every mistake in it.

        Where the environment names a file in HEADWORKS_POLICY, that one is loaded instead of `path`:
        `headworks serve` and `headworks up` say so which policy they were started with.

        environ  variables to read; default: this process's
        """
        environ = os.environ if environ is None else environ
        file = Path(environ.get("HEADWORKS_POLICY") or path)
        since = signature(file)
        policy = load(file, environ)
        works = cls(policy, resolve=resolve, pod=environ.get("HEADWORKS_POD"))
        if policy.service.reload is not None:
            works._policy_watch = PolicyWatch(
                file.absolute(),
                since,
                every=policy.service.reload,
                read=partial(load, file.absolute(), environ),
                adopt=works._adopt,
                telemetry=works.telemetry,
            )
        return works

    def protect(self, app: App) -> App:
        """Install layers 2 to 4, the answers to refusals, and start and stop. Returns `app` itself.

        Middleware may be added before and after; it all comes to stand between admission and
        fairness. `RuntimeError` when an application is protected already, or `app` has started.
        """
        if not isinstance(app, Starlette):
            raise TypeError(f"protect() takes a FastAPI or Starlette application, not {app!r:.80}")
        if self._app is not None:
            raise RuntimeError(
                "protect() was called twice; one Headworks protects one application, so make another"
            )
        if app.middleware_stack is not None:
            raise RuntimeError("protect() comes too late: the application has already started")
        self._app = app
        self._stack(app)
        self._lifespan(app)
        return app

    def vendor(self, name: str) -> Vendor:
        """The vendor of that name in the policy; `LookupError` names those there are."""
        if name not in self._vendors:
            known = ", ".join(sorted(self._vendors)) or "none"
            raise LookupError(f"the policy has no vendor {name!r}; it has: {known}")
        return self._vendors[name]

    async def charge(self, units: int) -> None:
        """Take `units` (≥ 0) more of the current request's limits; all of it, or `QuotaExceeded`."""
        self._home.enter("charge()")
        await self._fairness.charge(units)

    async def start(self) -> None:
        """Begin to watch over the pod. Done by the lifespan as well; again does nothing.

        Raises `PortTaken` where the policy names a management port that cannot be had.
        """
        if not self._watches:
            self._home.enter("Headworks")
            self._health.start()
            self._answers.begin()
            if self._management is not None:
                await self._management.start()
            self._watch("health", self._health.watch)
            if self._pressure.bounded:
                self._watch("pressure", self._pressure.watch)
            if self._policy_watch is not None:
                self._watch("policy", self._policy_watch.run)
            self._termination.install()
            await self._greet_store()

    async def stop(self) -> None:
        """End requests, clean-ups, vendors, store and probes, in this order. The lifespan does so."""
        if not self._watches:
            return
        self._leave()
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.wait(self._watches.values())
        loop = asyncio.get_running_loop()
        drained = self._termination.ends_at or loop.time() + self.policy.drain_timeout
        await self._drain(drained)
        ends = min(drained, loop.time()) + CLEANUP
        await self._reaper.drain(max((ends - loop.time()) / 2, SOONEST))
        closing = [("the leave-permit", self._health.close)]
        closing += [(f"vendor {name}", vendor.aclose) for name, vendor in self._vendors.items()]
        closing += [("what limits only watch", self._fairness.drain)]
        closing += [("the store", self._store.aclose)]
        if self._management is not None:  # last: until then it says that the pod is draining
            closing += [("the management port", self._management.aclose)]
        for what, close in closing:
            try:
                async with asyncio.timeout(max(ends - loop.time(), SOONEST)):
                    await close()
            except Exception:  # one that cannot be closed must not keep the others open
                log.exception("%s was not closed", what)
        self._termination.remove()
        self._watches = {}  # last: what is cancelled halfway may be asked for again

    def _watch(self, what: str, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Look at something until the pod stops, unless that is under way."""
        if what not in self._watches or self._watches[what].done():
            self._watches[what] = asyncio.create_task(look(), name=f"headworks: {what}")

    def _leave(self) -> None:
        self._health.drain()
        self._answers.leave()

    async def _drain(self, ends: float) -> None:
        """Wait until nothing runs, bounded: then answers are ended, and get a moment to unwind.

        The server may have waited already, and have cancelled what was left: that moment is then all
        there is to wait, and needed, since its cancelled tasks are not awaited by anybody else.
        """
        try:
            async with asyncio.timeout_at(ends):
                await self._slots.wait_idle()
        except TimeoutError:
            self._answers.end()
            try:
                async with asyncio.timeout(LAST_WORDS):
                    await self._slots.wait_idle()
            except TimeoutError:
                running = self._slots.statistics().running
                log.warning("%d requests had not ended when the drain timeout was over", running)

    async def _greet_store(self) -> None:
        """Connect before the first request needs it; where nobody answers, start without the store."""
        peek = Question((Ask("start", f"{{start:{self.policy.service.name}}}", Window.of(1, 1.0), 0),))
        for _ in range(FAILURES):
            if not (await self._store.ask(peek)).degraded:
                return
        log.warning("the store does not answer: starting without it")

    def _adopt(self, policy: Policy) -> None:
        """Go by a new policy in all that may change while requests are served, between two of them."""
        change = Change.between(self.policy, policy, most=self._most)
        rules, without = rules_of(change.policy), without_store(change.policy)
        bounds = bounds_of(change.policy)
        self.policy, self._fairness.rules, self._identifier.callers = change.policy, rules, rules.callers
        self._without_store.clear()
        self._without_store.update(without)
        self._pressure.bound(*bounds)
        if self._pressure.bounded and self._watches:
            self._watch("pressure", self._pressure.watch)
        readmit(change.policy.admission, slots=self._slots, answers=self._answers, gate=self._gate)
        change.tell(self.telemetry)
        self._name_idle_limits()

    def _name_idle_limits(self) -> None:
        paths = self._fairness.rules.limits.paths()
        for path in sorted(paths - self._routes.templates()) if self._routes is not None else ():
            log.warning('fairness: no route is "%s"; what the policy says of it holds nobody', path)

    def _stack(self, app: Starlette) -> None:
        """The way in, outermost first: probes, known refusals, admission, the application's middleware,
        fairness."""
        routes = self._routes = Routes(app)
        app.user_middleware.append(Middleware(FairnessGate, fairness=self._fairness, routes=routes))
        build = app.build_middleware_stack

        def outermost() -> ASGIApp:
            admission = self._gate = gate_of(
                self.policy,
                build(),
                slots=self._slots,
                answers=self._answers,
                identifier=self._identifier,
                telemetry=self.telemetry,
                reaper=self._reaper,
                routes=routes,
            )
            ahead = ahead_of(
                self.policy,
                store=self._store,
                fairness=self._fairness,
                routes=routes,
                identifier=self._identifier,
                telemetry=self.telemetry,
            )
            self._name_idle_limits()
            return Door(
                app,
                probes=partial(Probes, pages=self._pages, allow=self._inside),
                admission=admission,
                ahead=ahead,
                clear=clear(app.user_middleware, build),
                store=self._store,
                telemetry=self.telemetry,
            )

        # On the instance, so that admission stays outermost whatever middleware is added later.
        app.build_middleware_stack = outermost  # type: ignore[method-assign]  # meant: see above

    def _inside(self) -> Sequence[Network]:
        """Whose probes on the service's port see everything, by the policy that is in force."""
        allow = self.policy.management.allow
        return self.policy.service.trust if allow is None else allow

    def _lifespan(self, app: Starlette) -> None:
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            try:
                await self.start()
                async with inner(app) as state:
                    self._health.serve()
                    yield state
            finally:
                await self.stop()

        app.router.lifespan_context = lifespan

    def _facts(self) -> dict[str, Any]:
        slots, store = self._slots.statistics(), self._store.statistics()
        return {
            "pod": self.pod,
            "in_flight": slots.in_flight,
            "limit": slots.limit,
            "store": {
                "kind": store.kind,
                "state": "up" if store.up else "degraded",
                "processes": store.processes,
            },
        }

    def _show_gauges(self) -> None:
        gauge, slots, store = self._metrics.gauge, self._slots.statistics, self._store.statistics
        gauge("in_flight", "Requests whose answer is not complete", lambda: slots().in_flight)
        gauge("in_flight_limit", "Places for requests", lambda: slots().limit)
        gauge("websockets", "Websockets open", lambda: slots().websockets)
        gauge("admission_waiting", "Requests in line for a place", lambda: slots().waiting)
        gauge("admission_holding_seconds", "Mean time a place is held", lambda: slots().holding)
        gauge("admission_pressure", "How much is shed by pressure, 0 to 3", lambda: slots().pressure)
        gauge("ready", "Whether the pod asks for traffic", lambda: float(self._health.ready))
        gauge("store_up", "Whether the shared store decides", lambda: float(store().up))
        gauge("store_processes", "Processes that share the store", lambda: store().processes)
        gauge("store_degraded_decisions", "Decided without the store", lambda: store().degraded)
