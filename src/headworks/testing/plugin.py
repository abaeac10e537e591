"""A pytest plugin: virtual time, a works from a policy, fake vendors, and a client, all in process.

It is found by pytest where headworks is installed, and costs a run that does not use it nothing but
its import, of this file alone.

    @pytest.mark.virtual_time    the test is a coroutine, and time jumps (`headworks.testing.loop`)
    headworks_sink               remembers every event of the works made in this test
    headworks_vendors            the fake vendors by name: put one in before, look at it after
    make_headworks               policy -> `Headworks` on this process's memory, with fake vendors only
    headworks_client             application -> client, the application started and stopped around it
"""

from __future__ import annotations

import inspect
import random
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import httpx2
    from starlette.applications import Starlette

    from headworks.policy.vendor_settings import VendorSettings
    from headworks.testing.fake_vendor import FakeVendor
    from headworks.testing.recording import RecordingSink
    from headworks.works import Headworks


class MakeHeadworks(Protocol):
    def __call__(self, policy: str | Path | Mapping[str, Any], /, **options: Any) -> Headworks: ...


class OpenClient(Protocol):
    def __call__(
        self,
        app: Starlette,
        /,
        *,
        address: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[httpx2.AsyncClient]: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "virtual_time: run this coroutine test on a loop whose time jumps (headworks)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("virtual_time") is None:
        return None
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        raise pytest.UsageError(f"{pyfuncitem.nodeid}: virtual_time is for `async def` tests")
    from headworks.testing import loop

    wanted: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters
    }
    loop.run(pyfuncitem.obj(**wanted))
    return True


@pytest.fixture
def headworks_sink() -> RecordingSink:
    """Every event of the works made in this test, in order; `of(Kind)` picks one kind."""
    from headworks.testing.recording import RecordingSink

    return RecordingSink()


@pytest.fixture
def headworks_vendors() -> dict[str, FakeVendor]:
    """The fake vendors behind the works, by their names in the policy.

    One that is put in before the works are made is used as it is; the others are made from the
    policy's own quota, enforced the way its profile says, and answer after a while.
    """
    return {}


@pytest.fixture
def make_headworks(
    headworks_sink: RecordingSink, headworks_vendors: dict[str, FakeVendor]
) -> MakeHeadworks:
    """Make a `Headworks` of a policy: its TOML as text, its file, or its tables.

    It reads no environment, opens no port, reaches no store and calls no real vendor: limits are kept
    in this process's memory, unless a `store` is given. Other options are those of `Headworks`.
    `PolicyError` lists every mistake in the policy.
    """

    def make(policy: str | Path | Mapping[str, Any], /, **options: Any) -> Headworks:
        from headworks.policy.load import parse, read
        from headworks.store.memory import MemoryStore
        from headworks.testing.fake_vendor import InProcess
        from headworks.works import Headworks

        if isinstance(policy, Path):
            policy = read(policy)
        elif isinstance(policy, str):
            policy = tomllib.loads(policy)
        settings = parse({**policy, "management": {"port": 0}}, "the test's policy", {})
        for name, vendor in settings.vendors.items():
            if name not in headworks_vendors:
                headworks_vendors[name] = _fake(vendor)
        defaults: dict[str, Any] = {
            "store": MemoryStore(),
            "transports": {name: InProcess(vendor) for name, vendor in headworks_vendors.items()},
            "pod": "pod-1",
            "rng": random.Random(1),
        }
        sinks = [headworks_sink, *options.pop("sinks", ())]
        return Headworks(settings, sinks=sinks, **{**defaults, **options})

    return make


@pytest.fixture
def headworks_client() -> OpenClient:
    """Start an application, talk to it in process, stop it.

    `async with headworks_client(app, address="203.0.113.7") as client:` gives an `httpx2.AsyncClient`
    whose requests come from that address. Answers stream, and a failure of the handler is a 500.
    """
    return _client


@asynccontextmanager
async def _client(
    app: Starlette,
    /,
    *,
    address: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[httpx2.AsyncClient]:
    import httpx2

    from headworks.testing.fake_vendor import InProcess

    client = httpx2.AsyncClient(
        transport=InProcess(app, client=address), base_url="http://pod", headers=headers, timeout=None
    )
    async with client, app.router.lifespan_context(app):
        yield client


def _fake(vendor: VendorSettings) -> FakeVendor:
    """A vendor that enforces the policy's quota the way the policy's profile says."""
    from headworks.policy.profiles import profile_named
    from headworks.testing.fake_vendor import FakeVendor, limit

    profile = profile_named(vendor.profile)
    quotas = {"": vendor.quota} | {name: model.quota for name, model in vendor.models.items()}
    return FakeVendor(
        limit(
            str(rate),
            mechanism=profile.mechanism,
            window=profile.window,
            burst=profile.capacity_of(rate) if profile.mechanism == "bucket" else None,
            model=model,
        )
        for model, quota in quotas.items()
        for rate in quota
    )
