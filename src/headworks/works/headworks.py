"""Builds every layer from the policy and installs them on an application.

The order of the way in is the order of `Headworks._stack`: probes, admission, whatever middleware
the application has, fairness, the application. Everything lives on the `Headworks` object, so that
several can live in one process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from headworks import fairness
from headworks.admission import AdmissionGate, Slots
from headworks.cleanup import Reaper
from headworks.fairness import Fairness, FairnessGate, Limits, Routes
from headworks.health import Health, Pages, Probes, Termination
from headworks.identity import Resolver
from headworks.limits.shapes import Window
from headworks.policy.load import load
from headworks.policy.profiles import profile_named
from headworks.policy.settings import CLEANUP, Policy
from headworks.store.ladder import FAILURES
from headworks.store.protocol import Ask, Question, Store
from headworks.telemetry import Sink, Telemetry
from headworks.telemetry.prometheus import PrometheusSink
from headworks.vendor import Vendor
from headworks.works.build import identifier_of, management_of, store_of
from headworks.works.permit import permit_of

log = logging.getLogger("headworks")

App = TypeVar("App", bound=Starlette)


class Headworks:
    """Every layer of one service, in this process.

    policy      the whole policy
    resolve     async (key) -> name of a tier, or None for an unknown key; beside the policy's table
    store       shared state; default: what the policy names, or this process's memory
    transports  HTTP transports by vendor name, instead of real connections
    sinks       listeners for every event, beside the Prometheus one
    pod         this pod's name; default: HEADWORKS_POD, else host name and process id
    rng, now    chance and the wall clock
    """

    cost = staticmethod(fairness.cost)
    limit = staticmethod(fairness.limit)

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
        rng = rng or random.Random()
        self._metrics = PrometheusSink()
        self.telemetry = Telemetry(self._metrics, *sinks)
        self._reaper = Reaper()
        self._store = store_of(policy, self.telemetry, rng) if store is None else store
        self._identifier = identifier_of(policy, resolve, self.telemetry)
        self._slots = Slots(policy.admission.max_in_flight, rng=rng)
        self._limits = Limits(policy.fairness, service=policy.service.name)
        self._fairness = Fairness(
            self._limits,
            dialect=policy.fairness.headers,
            store=self._store,
            identifier=self._identifier,
            telemetry=self.telemetry,
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
        self._termination = Termination(delay=policy.health.drain_delay, leaving=self._health.drain)
        self._vendors = {
            name: Vendor(
                name,
                settings,
                profile_named(settings.profile),
                store=self._store,
                telemetry=self.telemetry,
                reaper=self._reaper,
                pod=self.pod,
                replicas=policy.deploy.replicas,
                rng=rng,
                now=now,
                transport=(transports or {}).get(name),
            )
            for name, settings in policy.vendors.items()
        }
        self._show_gauges()
        self._app: Starlette | None = None
        self._watch: asyncio.Task[None] | None = None

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
        policy = load(environ.get("HEADWORKS_POLICY") or path, environ)
        return cls(policy, resolve=resolve, pod=environ.get("HEADWORKS_POD"))

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
        await self._fairness.charge(units)

    async def start(self) -> None:
        """Begin to watch over the pod. Done by the lifespan as well; again does nothing.

        Raises `PortTaken` where the policy names a management port that cannot be had.
        """
        if self._watch is None:
            self._health.start()
            if self._management is not None:
                await self._management.start()
            self._watch = asyncio.create_task(self._health.watch(), name="headworks: health")
            self._termination.install()
            await self._greet_store()

    async def stop(self) -> None:
        """End requests, clean-ups, vendors, store and probes, in this order. The lifespan does so."""
        if self._watch is None:
            return
        self._health.drain()
        self._watch.cancel()
        await asyncio.wait((self._watch,))
        self._watch = None
        await self._drain()
        closing = [("the leave-permit", self._health.close)]
        closing += [(f"vendor {name}", vendor.aclose) for name, vendor in self._vendors.items()]
        closing += [("the store", self._store.aclose)]
        if self._management is not None:  # last: until then it says that the pod is draining
            closing += [("the management port", self._management.aclose)]
        for what, close in closing:
            try:
                async with asyncio.timeout(CLEANUP):
                    await close()
            except Exception:  # one that cannot be closed must not keep the others open
                log.exception("%s was not closed", what)
        self._termination.remove()

    async def _drain(self) -> None:
        """Wait until nothing runs and nothing is left to clean up; both are bounded."""
        try:
            async with asyncio.timeout(self.policy.drain_timeout):
                await self._slots.wait_idle()
        except TimeoutError:
            running = self._slots.statistics().running
            log.warning("%d requests had not ended when the drain timeout was over", running)
        await self._reaper.drain(CLEANUP)

    async def _greet_store(self) -> None:
        """Connect before the first request needs it; where nobody answers, start without the store."""
        peek = Question((Ask("start", f"{{start:{self.policy.service.name}}}", Window.of(1, 1.0), 0),))
        for _ in range(FAILURES):
            if not (await self._store.ask(peek)).degraded:
                return
        log.warning("the store does not answer: starting without it")

    def _stack(self, app: Starlette) -> None:
        """The way in, outermost first: probes, admission, the application's middleware, fairness."""
        routes = Routes(app)
        app.user_middleware.append(Middleware(FairnessGate, fairness=self._fairness, routes=routes))
        build = app.build_middleware_stack

        def outermost() -> ASGIApp:
            admission = AdmissionGate(
                build(),
                slots=self._slots,
                identifier=self._identifier,
                sla=self.policy.service.sla,
                write_stall=self.policy.admission.write_stall,
                telemetry=self.telemetry,
                reaper=self._reaper,
            )
            for path in sorted(self._limits.paths() - routes.templates()):
                log.warning('fairness.endpoints: no route is "%s"; its limit holds nobody', path)
            allow = self.policy.management.allow
            return Probes(
                admission, self._pages, allow=self.policy.service.trust if allow is None else allow
            )

        # On the instance, so that admission stays outermost whatever middleware is added later.
        app.build_middleware_stack = outermost  # type: ignore[method-assign]  # meant: see above

    def _lifespan(self, app: Starlette) -> None:
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            await self.start()
            try:
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
        gauge("ready", "Whether the pod asks for traffic", lambda: float(self._health.ready))
        gauge("store_up", "Whether the shared store decides", lambda: float(store().up))
        gauge("store_processes", "Processes that share the store", lambda: store().processes)
        gauge("store_degraded_decisions", "Decided without the store", lambda: store().degraded)
