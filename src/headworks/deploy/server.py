"""The server's flags, from the policy: how uvicorn runs one pod.

The server decides nothing that a layer decides. Its `limit_concurrency` counts sockets and answers
probes too, so it stands far above admission as a backstop, short only of the files that the process may
open; forwarding headers are read in one place only, `headworks.address`, so the server's own reading of
them is off.
"""

from __future__ import annotations

import logging
import math
import resource
from dataclasses import dataclass, replace
from typing import Any

from headworks.deploy.heads import MOST
from headworks.deploy.one_write import Heads
from headworks.deploy.protocol import Protocol
from headworks.policy.settings import LAST_WORDS, Policy

log = logging.getLogger("headworks")

OTHER_FILES = 384
"""Files a pod needs beside clients' sockets and connections to vendors: store, logs, modules, probes."""
OPEN_FILES = 65_536
"""Open files a process is given at least, where the system lets it have them: a socket is one, and where
the service's port has used them up, nobody reaches the management port either."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `uvicorn.Config` takes, apart from the application.

    limit_concurrency          sockets at which the server itself answers 503
    backlog                    connections the operating system holds while nobody accepts
    timeout_keep_alive         whole seconds an idle connection is kept
    timeout_graceful_shutdown  whole seconds that requests in flight get after the drain began
    http                       the protocol, which bounds heads and writes small answers at once
    """

    host: str
    port: int
    limit_concurrency: int
    backlog: int
    timeout_keep_alive: int
    timeout_graceful_shutdown: int
    http: type[Protocol]
    loop: str = "uvloop"
    lifespan: str = "on"
    workers: int = 1
    proxy_headers: bool = False
    server_header: bool = False
    access_log: bool = False

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `uvicorn.Config`."""
        return {name: getattr(self, name) for name in self.__slots__}


def server_settings(policy: Policy, *, host: str = "0.0.0.0", port: int | None = None) -> ServerSettings:
    """The settings of one pod; `port` defaults to `deploy.port`."""

    class Bounded(Protocol):
        heads = Heads()
        most = max(MOST, 2 * policy.gateway.max_header)  # the gateway adds headers of its own

    return ServerSettings(
        host=host,
        port=policy.deploy.port if port is None else port,
        limit_concurrency=policy.admission.server_backstop,
        backlog=policy.admission.backlog,
        timeout_keep_alive=math.ceil(policy.admission.keep_alive),
        timeout_graceful_shutdown=math.ceil(policy.drain_timeout + LAST_WORDS),
        http=Bounded,
    )


def within_open_files(settings: ServerSettings, policy: Policy) -> ServerSettings:
    """The settings with a backstop that the system lets the process reach.

    A server out of files cannot even refuse, so the limit of open files (`ulimit -n`) is raised; where
    it cannot be raised far enough, the backstop is lowered to what is left of it.
    """
    others = OTHER_FILES + sum(vendor.connections.max for vendor in policy.vendors.values())
    need = settings.limit_concurrency + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(need, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= need:
        return settings
    left = max(1, soft - others)
    log.warning(
        "the process may open %d files, so the server refuses at %d connections instead of %d",
        soft,
        left,
        settings.limit_concurrency,
    )
    return replace(settings, limit_concurrency=left)
