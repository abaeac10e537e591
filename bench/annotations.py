"""ingress-nginx's rate-limit annotations, as its controller translates them into nginx.

    nginx.ingress.kubernetes.io/limit-rps: "2000"
    nginx.ingress.kubernetes.io/limit-connections: "5000"
    nginx.ingress.kubernetes.io/limit-rpm: "100"

Each becomes a zone keyed by the client's address, with a burst of five times the rate, in every replica
of the controller; a refusal is a 503. The directives below are those of its template.
"""

from __future__ import annotations

from collections.abc import Sequence

from headworks.gateway.shares import Address

BURST = 5
"""The annotation `limit-burst-multiplier`, when it is left out."""


def conf(*, port: int, pods: Sequence[Address], rps: int, connections: int, rpm: int) -> str:
    """An nginx that limits as the three annotations say, in front of these pods."""
    servers = " ".join(f"server {pod} max_fails=0;" for pod in pods)
    return f"""
daemon off;
pid nginx.pid;
error_log stderr crit;
worker_processes 2;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path client_body_temp;
    proxy_temp_path proxy_temp;
    limit_req_status 503;
    limit_conn_status 503;
    limit_req_zone $binary_remote_addr zone=rps:5m rate={rps}r/s;
    limit_req_zone $binary_remote_addr zone=rpm:5m rate={rpm}r/m;
    limit_conn_zone $binary_remote_addr zone=conn:5m;
    upstream pods {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            limit_conn conn {connections};
            limit_req zone=rps burst={rps * BURST} nodelay;
            limit_req zone=rpm burst={rpm * BURST} nodelay;
            proxy_pass http://pods;
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 3;
        }}
    }}
}}
"""
