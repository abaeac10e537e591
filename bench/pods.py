"""Single pods for the claims about probes and slow clients, and what is asked of them from outside."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from bench.stage import ROOT, Missing, headworks, stop
from headworks.local import probe
from headworks.local.parts import LOOPBACK

FOLDER = ROOT / "bench" / "pod"
START = 30.0
"""Seconds a pod may take to answer."""
PATIENCE = 10.0
"""Seconds a probe waits: how fast it was is told beside, since that depends on the machine."""
EVERY = 0.05
"""Seconds between two probes."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A running server. `management` is its port for probes, where it has one; else its only port."""

    process: asyncio.subprocess.Process
    port: int
    management: int

    @property
    def sockets(self) -> int:
        """How many sockets it has open."""
        names = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return sum(_link(name).startswith("socket:") for name in names)

    @property
    def worked(self) -> float:
        """Seconds of processor time it has had."""
        told = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        user, system = told.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass
class Answers:
    """What probes got: statuses (0: none at all), and seconds they took."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int | None:
        """Probes not answered 200; None when there was none at all."""
        return sum(status != 200 for status in self.statuses) if self.statuses else None

    @property
    def p99_ms(self) -> float | None:
        ordered = sorted(self.seconds)
        return round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1) if ordered else None


@asynccontextmanager
async def protected(**environ: str) -> AsyncIterator[Pod]:
    """`headworks serve` with the pod's policy; settings from the environment."""
    port, management = probe.free_ports(LOOPBACK, 2, random.Random())
    places = ("--host", LOOPBACK, "--port", str(port), "--management-port", str(management))
    process = await headworks(
        "serve", "--policy", str(FOLDER / "headworks.toml"), *places, environ=environ
    )
    async with _answering(Pod(process, port, management)) as pod:
        yield pod


@asynccontextmanager
async def plain(*protection: str) -> AsyncIterator[Pod]:
    """The same handlers under uvicorn, with these options for all protection."""
    port = probe.free_ports(LOOPBACK, 1, random.Random())[0]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "bench_pod:bare", "--app-dir", str(FOLDER)),
        *("--host", LOOPBACK, "--port", str(port), *protection),
        *("--no-access-log", "--log-level", "critical", "--timeout-graceful-shutdown", "1"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    async with _answering(Pod(process, port, port)) as pod:
        yield pod


@asynccontextmanager
async def _answering(pod: Pod) -> AsyncIterator[Pod]:
    async def ready() -> bool:
        return await probe.http_status(LOOPBACK, pod.port, "/health") == 200

    try:
        if not await probe.wait_until(ready, timeout=START):
            raise Missing("a pod did not answer")
        yield pod
    finally:
        await stop(pod.process)


@asynccontextmanager
async def hammered(pod: Pod, path: str, connections: int) -> AsyncIterator[None]:
    """Meanwhile, requests on so many connections."""
    url = f"http://{LOOPBACK}:{pod.port}{path}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.hammer", url, str(connections)),
        env=dict(os.environ),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        await asyncio.sleep(1.0)  # until all connections are open
        yield
    finally:
        await stop(process)


async def ask(port: int, path: str, seconds: float, every: float = EVERY) -> Answers:
    """Probe as the platform does, on a connection of its own each time."""
    clock, found = asyncio.get_running_loop(), Answers()
    ends = clock.time() + seconds
    while clock.time() < ends:
        began = clock.time()
        found.statuses.append(await _status(port, path))
        found.seconds.append(clock.time() - began)
        await asyncio.sleep(every)
    return found


async def _status(port: int, path: str) -> int:
    """The status of one GET; 0 when there is none within `PATIENCE`."""
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n".encode())
            return int((await reader.readline()).split(b" ")[1])
    except (OSError, TimeoutError, IndexError):
        return 0
    finally:
        if writer is not None:
            writer.close()


async def served(url: str, source: str, seconds: float, **headers: str) -> float:
    """The part of a polite client's requests that was served, four a second on fresh connections."""
    clock, statuses = asyncio.get_running_loop(), []
    ends = clock.time() + seconds
    while clock.time() < ends:
        transport = httpx2.AsyncHTTPTransport(local_address=source, trust_env=False)
        async with httpx2.AsyncClient(transport=transport, timeout=10.0, trust_env=False) as asking:
            try:
                statuses.append((await asking.get(url, headers=headers)).status_code)
            except httpx2.TransportError:
                statuses.append(0)
        await asyncio.sleep(0.25)
    return round(statuses.count(200) / len(statuses), 4)


@dataclass
class Memory:
    """The resident memory of processes, in MiB: before, and at its highest since."""

    before: dict[int, float]
    highest: dict[int, float]

    @property
    def grown(self) -> float:
        """By how much they have grown, all together."""
        return round(sum(self.highest[pid] - self.before[pid] for pid in self.before), 1)

    def look(self) -> None:
        self.highest = {pid: max(high, _memory(pid)) for pid, high in self.highest.items()}


@asynccontextmanager
async def memory_of(*pids: int) -> AsyncIterator[Memory]:
    """Watch it meanwhile."""
    before = {pid: _memory(pid) for pid in pids}
    found = Memory(before, dict(before))

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.25)
            found.look()

    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def _memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise Missing(f"process {pid} does not say how much memory it has")


def many_files(wanted: int) -> None:
    """Let this process, and those it starts, have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Missing(f"only {hard} open files are allowed here; {wanted} are needed")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _link(name: Path) -> str:
    try:
        return str(name.readlink())
    except OSError:  # closed since it was listed
        return ""
