"""`headworks serve`: one pod, with the server flags of the policy."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
from starlette.applications import Starlette

from headworks.cli.fail import fail, policy_or_fail
from headworks.deploy.server import ServerSettings, server_settings, within_open_files
from headworks.fairness import FairnessGate
from headworks.health import PortTaken
from headworks.health.management import listen

log = logging.getLogger("headworks")

GC_THRESHOLDS = (10_000, 20, 50)
"""Garbage collection in a frozen pod: what lives after startup is never looked at again, so that what
requests leave behind may pile up further before it is."""


def serve(
    policy: Annotated[Path, typer.Option("--policy", help="The policy file.")] = Path("headworks.toml"),
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65_535, help="Default: the policy's deploy.port."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="One; a pod is one process.")] = 1,
    management_port: Annotated[
        int | None,
        typer.Option(
            "--management-port",
            min=0,
            max=65535,
            help="For probes and metrics; 0: none. Default: the policy's management.port, else 9000.",
        ),
    ] = None,
    gc_freeze: Annotated[
        bool | None,
        typer.Option(
            "--gc-freeze/--no-gc-freeze",
            help="Freeze what lives after startup. Default: the policy's deploy.garbage_collection.",
        ),
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="One log line per request.")] = False,
) -> None:
    """Serve the policy's application as one pod.

    Example: headworks serve --policy headworks.toml --port 8000
    """
    if workers != 1:
        fail(
            "--workers: one pod is one process. Its slots, its line and its readiness are the process's "
            "own, and several workers behind one port would each have their own; run more pods instead"
        )
    path = policy.absolute()
    loaded = policy_or_fail(path)
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    log.setLevel(logging.INFO)  # ours and the server's; not every call of every library
    settings = within_open_files(server_settings(loaded, host=host, port=port), loaded)
    os.environ["HEADWORKS_POLICY"] = str(path)
    _leave_quietly()
    listener = _listener(settings)
    _manage(
        loaded.management.host or host,
        loaded.management_port if management_port is None else management_port,
        beside=settings.port,
    )
    if gc_freeze is None:
        gc_freeze = loaded.deploy.garbage_collection == "freeze"
    application = _application(loaded.service.app, path.parent)
    arguments = settings.arguments() | {"access_log": access_log}
    _Pod(uvicorn.Config(application, **arguments), gc_freeze=gc_freeze).run(sockets=[listener])


class _Pod(uvicorn.Server):
    """uvicorn's server, which also settles the garbage collector once everything has started."""

    def __init__(self, config: uvicorn.Config, *, gc_freeze: bool) -> None:
        super().__init__(config)
        self._gc_freeze = gc_freeze

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._gc_freeze:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        for listener in sockets or ():
            log.info("pod listens on %s:%d", *listener.getsockname()[:2])


def _manage(host: str, port: int, *, beside: int) -> None:
    """Tell the application's works where probes and metrics are served; end here if they cannot be."""
    if port and port == beside:
        fail(f"--management-port: {port} is the service's port; choose another, or 0 for none")
    if port:
        try:
            listen(host, port).close()
        except PortTaken as error:
            fail(str(error))
    os.environ["HEADWORKS_MANAGEMENT__PORT"] = str(port)
    os.environ["HEADWORKS_MANAGEMENT__HOST"] = host


def _leave_quietly() -> None:
    """Being told to go is no failure: exit 0, before the server runs and after it has drained.

    The server takes the signals over while it runs, and raises them again once it has shut down.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def _application(name: str, beside: Path) -> Any:
    """Import "module:attribute", looking beside the policy first, then in the working folder."""
    module_name, _, attribute = name.partition(":")
    sys.path[:0] = [str(beside), str(Path.cwd())]
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            fail(f"importing {module_name} failed: {_last_line(error)}")
        places = " or ".join(dict.fromkeys((str(beside), str(Path.cwd()))))
        fail(f"service.app: there is no module {error.name} in {places}")
    except Exception as error:
        fail(f"importing {module_name} failed: {_last_line(error)}")
    for part in attribute.split("."):
        if not hasattr(found, part):
            fail(f"service.app: module {module_name} has no attribute {attribute}")
        found = getattr(found, part)
    if not callable(found):
        fail(f"service.app: {name} is no ASGI application but a value of type {type(found).__name__}")
    if isinstance(found, Starlette) and not _protected(found):
        fail(
            f"service.app: no Headworks protects {name}; call works.protect({attribute}) where it is "
            "made, with works = Headworks.load()"
        )
    return found


def _protected(app: Starlette) -> bool:
    """Whether `Headworks.protect` has been called on it."""
    installed: list[object] = [middleware.cls for middleware in app.user_middleware]
    return FairnessGate in installed


def _last_line(error: Exception) -> str:
    """The error and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if not frame.filename.startswith("<frozen")][-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def _listener(settings: ServerSettings) -> socket.socket:
    """Bind before anything starts, so that a taken port costs nothing."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        fail(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another --port"
        )
    listener.set_inheritable(False)
    return listener
