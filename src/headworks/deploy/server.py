"""The server's flags, from the policy: how uvicorn runs one pod.

The server decides nothing that a layer decides. Its `limit_concurrency` counts sockets and answers
probes too, so it stands above admission as a backstop; forwarding headers are read in one place only,
`headworks.address`, so the server's own reading of them is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headworks.policy.settings import Policy


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `uvicorn.Config` takes, apart from the application.

    limit_concurrency          sockets at which the server itself answers 503
    backlog                    connections the operating system holds while nobody accepts
    timeout_keep_alive         whole seconds an idle connection is kept
    timeout_graceful_shutdown  whole seconds that requests in flight get after the drain began
    """

    host: str
    port: int
    limit_concurrency: int
    backlog: int
    timeout_keep_alive: int
    timeout_graceful_shutdown: int
    loop: str = "uvloop"
    http: str = "httptools"
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
    return ServerSettings(
        host=host,
        port=policy.deploy.port if port is None else port,
        limit_concurrency=policy.admission.server_backstop,
        backlog=policy.admission.backlog,
        timeout_keep_alive=math.ceil(policy.admission.keep_alive),
        timeout_graceful_shutdown=math.ceil(policy.drain_timeout),
    )
