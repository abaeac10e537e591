"""The fake vendor on a socket, under uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn

from headworks.testing.fake_vendor.app import FakeVendor


class PortTaken(OSError):
    """The address cannot be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises `PortTaken` with a sentence that says why."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((host, port))
        own.listen(2048)
        own.setblocking(False)
    except OSError as error:
        own.close()
        raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return own


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: whoever runs it decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(vendor: FakeVendor) -> _Server:
    config = uvicorn.Config(
        vendor,
        lifespan="off",
        log_config=None,
        log_level="critical",  # faults close connections on purpose; that is nothing to log
        access_log=False,
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=0,  # calls that hang on purpose must not hold up the end
    )
    return _Server(config)


def address(own: socket.socket) -> str:
    host, port = own.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def serving(vendor: FakeVendor, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve on the running loop while the context is open; gives the address.

    Raises `PortTaken`. Calls still in flight at the end are cut off.
    """
    own = listen(host, port)
    server = _server(vendor)
    task = asyncio.create_task(server.serve(sockets=[own]), name="fake vendor")
    try:
        while not server.started and not task.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield address(own)
    finally:
        server.should_exit = True
        await task
        own.close()


def run(vendor: FakeVendor, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end within a second. `ready` is told the address once.

    Raises `PortTaken`.
    """

    async def main() -> None:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        async with serving(vendor, host=host, port=port) as base:
            ready(base)
            await ended.wait()

    with asyncio.Runner(loop_factory=uvicorn.Config(vendor).get_loop_factory()) as runner:
        runner.run(main())
