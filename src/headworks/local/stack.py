"""The whole stack on one machine: Valkey, fake vendors, pods, gateway, in that order; ended in reverse.

Everything listens on loopback only, and every vendor is a fake one unless its address was given.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from headworks.gateway.shares import Address
from headworks.local import parts, probe, status
from headworks.local.gateways import GATEWAYS, Unusable
from headworks.local.parts import LOOPBACK
from headworks.local.processes import Child, Command
from headworks.local.renewal import Renewal
from headworks.policy.load import load
from headworks.policy.settings import Policy

Wait = Callable[[], Coroutine[Any, Any, None]]

STORE_WAIT, VENDOR_WAIT, POD_WAIT, GATEWAY_WAIT = 5.0, 20.0, 60.0, 10.0
"""Seconds each kind of part may take until it answers for the first time."""
OWN_STORE = {"HEADWORKS_STORE__URL": f"valkey://{LOOPBACK}"}
"""What stands in for the policy's store where the policy is read before ours runs."""
PATIENCE = 3.0
"""Seconds of silence after which a start says whom it waits for."""


class Stack:
    """A stack that is started once and stopped once.

    pods         how many pods
    port         where the gateway listens
    gateway      which product stands in front: a name in `GATEWAYS`
    folder       its own: logs, the gateway's files, `stack.json`; removed at the end unless `keep`
    vendor_urls  real vendors by name; the others are faked
    environ      the environment of every part
    say          gets one line per event worth knowing
    """

    def __init__(
        self,
        policy: Policy,
        policy_file: Path,
        *,
        pods: int,
        port: int,
        gateway: str,
        folder: Path,
        keep: bool,
        vendor_urls: Mapping[str, str],
        environ: Mapping[str, str],
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        unknown = sorted(set(vendor_urls) - set(policy.vendors))
        if unknown:
            known = ", ".join(policy.vendors) or "none"
            raise Unusable(f"the policy has no vendor named {unknown[0]}; it has: {known}")
        self._policy, self._file = _here(policy, pods), policy_file
        self._pods, self._port, self._gateway = pods, port, GATEWAYS[gateway]
        self._folder, self._keep = folder, keep
        self._vendor_urls = dict(vendor_urls)
        # The stack brings its own store, so the policy's need not be reachable, or even set, here.
        self._environ = {**environ, "PYTHONUNBUFFERED": "1", **OWN_STORE}
        self._say, self._rng = say, rng
        self._parts: list[tuple[str, str, str, Child]] = []  # kind, url, where it is managed, child
        self._fake_urls: dict[str, str] = {}
        self._awaited: list[str] = []
        self._renewing: asyncio.Task[None] | None = None
        self._opened = self._running = False

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def started(self) -> bool:
        """Whether anything was started at all, even if it has ended since."""
        return bool(self._parts)

    def status(self) -> status.Status:
        """What runs where."""
        found = tuple(
            status.Part(
                child.name, kind, url, child.pid, str(child.command.log), child.restarts, management
            )
            for kind, url, management, child in self._parts
        )
        return status.Status(os.getpid(), self.url, str(self._file), dict(self._fake_urls), found)

    async def start(self) -> None:
        """Start everything and return when the gateway answers; `Unusable` says why it cannot."""
        reason = probe.port_in_use(LOOPBACK, self._port)
        if reason is not None:
            raise Unusable(f"cannot listen on port {self._port}: {reason}; choose another with --port")
        self._open_folder()
        faked = [name for name in self._policy.vendors if name not in self._vendor_urls]
        store_port, *ports = probe.free_ports(LOOPBACK, 1 + len(faked) + 2 * self._pods, self._rng)
        vendor_ports, pod_ports = ports[: len(faked)], ports[len(faked) :]
        serving, managing = pod_ports[: self._pods], pod_ports[self._pods :]
        telling = asyncio.create_task(self._tell_whom_it_waits_for(), name="progress of the start")
        try:
            await self._start_store(store_port)
            vendors = await self._start_vendors(faked, vendor_ports)
            pods = await self._start_pods(serving, managing, f"valkey://{LOOPBACK}:{store_port}")
            await _all([*vendors, *pods])
            await self._start_gateway(serving)
        finally:
            telling.cancel()
            await asyncio.wait((telling,))
        self._running = True
        renewal = self._renewal(serving)
        self._renewing = asyncio.create_task(renewal.watch(), name="watch of the policy")

    def _renewal(self, ports: list[int]) -> Renewal:
        """What happens when the policy file changes."""
        children = [child for kind, _, _, child in self._parts if kind == "pod"]
        by_name = dict(zip((child.name for child in children), ports, strict=True))
        (gateway,) = (child for kind, _, _, child in self._parts if kind == "gateway")

        def take_over(policy: Policy) -> None:
            if self._write_gateway(policy, ports) and gateway.pid is not None:
                self._gateway.take_over(gateway.pid)

        async def ready(pod: Child) -> bool:
            return await probe.http_status(LOOPBACK, by_name[pod.name], "/ready") == 200

        return Renewal(
            self._file,
            self._policy,
            reread=lambda: _here(load(self._file, self._environ), self._pods),
            gateway=take_over,
            pods=children,
            ready=ready,
            say=self._say,
        )

    async def _tell_whom_it_waits_for(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE)
            if self._awaited:
                self._say(f"waiting for {', '.join(self._awaited)} …")

    async def stop(self) -> None:
        """End every part: gateway, pods, vendors, store; each kind side by side. Never raises."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))
        for kind in ("gateway", "pod", "vendor", "store"):
            children = [child for its_kind, _, _, child in self._parts if its_kind == kind]
            await asyncio.gather(*(child.stop() for child in children))
        if self._opened and not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def kill_nowait(self) -> None:
        """Kill every part at once; `stop` then only sweeps up."""
        for *_, child in self._parts:
            child.kill_nowait()

    async def _start_store(self, port: int) -> None:
        child = await self._start(
            "valkey",
            "store",
            f"valkey://{LOOPBACK}:{port}",
            parts.valkey(self._folder / "valkey", port, self._environ),
        )
        if not await self._until(child, lambda: probe.valkey_answers(LOOPBACK, port), STORE_WAIT):
            self._say(f"valkey does not answer: pods start degraded\n{child.last_lines()}")

    async def _start_vendors(self, names: list[str], ports: list[int]) -> list[Wait]:
        waits: list[Wait] = []
        for name, port in zip(names, ports, strict=True):
            vendor = self._policy.vendors[name]
            url = self._fake_urls[name] = parts.vendor_url(vendor, port)
            command = parts.fake_vendor(name, vendor, self._folder, port, self._environ)
            child = await self._start(f"vendor-{name}", "vendor", url, command)
            waits.append(partial(self._answers, child, port, "/stats", VENDOR_WAIT))
        return waits

    async def _start_pods(self, serving: list[int], managing: list[int], store_url: str) -> list[Wait]:
        overrides = parts.pod_overrides(
            self._policy,
            store_url=store_url,
            vendor_urls={**self._fake_urls, **self._vendor_urls},
            pods=self._pods,
            environ=self._environ,
        )
        waits: list[Wait] = []
        environ = {**self._environ, **overrides}
        for index, ports in enumerate(zip(serving, managing, strict=True), 1):
            command = parts.pod(index, self._file, self._folder, ports, environ)
            url, management = (f"http://{LOOPBACK}:{port}" for port in ports)
            child = await self._start(f"pod-{index}", "pod", url, command, management)
            waits.append(partial(self._answers, child, ports[0], "/ready", POD_WAIT))
        return waits

    async def _start_gateway(self, ports: list[int]) -> None:
        folder = self._folder / "gateway"
        command = self._gateway.command(folder, self._environ, self._folder / "gateway.log")
        self._write_gateway(self._policy, ports)
        child = await self._start("gateway", "gateway", self.url, command)
        await self._answers(child, self._port, self._gateway.health, GATEWAY_WAIT)

    def _write_gateway(self, policy: Policy, ports: list[int]) -> list[str]:
        """Its files, for these pods; which of them changed."""
        pods = [Address(LOOPBACK, port) for port in ports]
        return self._gateway.write(policy, pods, self._folder / "gateway", self._port, LOOPBACK)

    async def _start(
        self, name: str, kind: str, url: str, command: Command, management: str = ""
    ) -> Child:
        child = Child(name, command, rng=self._rng, say=self._tell, changed=self._publish)
        self._parts.append((kind, url, management, child))
        try:
            await child.start()
        except OSError as error:
            self._parts.pop()
            raise Unusable(f"{name} cannot be started: {command.argv[0]}: {error.strerror}") from None
        return child

    async def _answers(self, child: Child, port: int, path: str, timeout: float) -> None:
        """Wait until the part answers 200; a part that dies before it ever did ends the start."""

        async def ready() -> bool:
            if child.pid is None or child.restarts:
                raise Unusable(f"{child.name} ended while it was starting\n{child.last_lines()}")
            return await probe.http_status(LOOPBACK, port, path) == 200

        if not await self._until(child, ready, timeout):
            raise Unusable(
                f"{child.name} did not answer {path} within {timeout:g} s\n{child.last_lines()}"
            )

    async def _until(self, child: Child, ready: Callable[[], Awaitable[bool]], timeout: float) -> bool:
        self._awaited.append(child.name)
        try:
            return await probe.wait_until(ready, timeout=timeout)
        finally:
            self._awaited.remove(child.name)

    def _tell(self, line: str) -> None:
        """What parts say while the stack starts is repeated by whatever ends the start."""
        if self._running:
            self._say(line)

    def _open_folder(self) -> None:
        """Make the folder, empty. What a killed stack left there is removed, nothing else."""
        folder = self._folder
        try:
            if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
                raise Unusable(
                    f"the folder {folder} belongs to somebody else; name another with --state"
                )
            if folder.exists():
                last = status.read(self._port, folder)
                foreign = any(folder.iterdir()) and last is None
                if foreign or (last is not None and _lives(last.pid)):
                    raise Unusable(f"the folder {folder} is in use; name another with --state")
                shutil.rmtree(folder)
            folder.mkdir(mode=0o711, parents=True)
            closed = [str(above) for above in folder.parents if not above.stat().st_mode & 0o001]
            if os.geteuid() == 0 and closed:
                raise Unusable(
                    f"nginx's workers run as nobody and cannot pass through {closed[-1]}; "
                    "name another folder with --state"
                )
        except OSError as error:
            raise Unusable(
                f"cannot write to the folder {folder}: {error.strerror}; name another with --state"
            ) from None
        self._opened = True
        self._publish()

    def _publish(self) -> None:
        """Say on disk what runs. A folder that is gone or full costs the status, not the stack."""
        try:
            status.write(self._folder, self.status())
        except OSError as error:
            self._say(f"cannot write {self._folder / status.FILE}: {error.strerror}")


def _here(policy: Policy, pods: int) -> Policy:
    """The policy with as many pods as are run here, whatever it says for its cluster."""
    deploy = policy.deploy.model_copy(update={"replicas": pods, "max_replicas": None})
    return policy.model_copy(update={"deploy": deploy})


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _all(waits: list[Wait]) -> None:
    """Wait for all; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
