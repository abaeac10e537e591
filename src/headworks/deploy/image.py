"""The dockerfile target: an image that runs one pod as nobody, with nothing in it that builds."""

from __future__ import annotations

from headworks.deploy.pod import FOLDER, LIVE, USER, probe_port
from headworks.policy.settings import Policy

TEMPLATE = """\
# Rendered by headworks from the policy; edit the policy instead.
# Beside it belong requirements.txt, which names headworks, and the application.
# deploy.base_image
FROM {base} AS base

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /venv
COPY requirements.txt /build/
RUN /venv/bin/pip install --requirement /build/requirements.txt

FROM base
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /venv /venv
WORKDIR /app
COPY . .
# fixed: a user that exists on no machine
USER {user}:{user}
# {why}
EXPOSE {port}
STOPSIGNAL SIGTERM
# fixed: patient, as a pod's own liveness is
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \\
  CMD ["python", "-c", "{ask}"]
# service.app is looked for beside the policy, and then in the working folder.
ENTRYPOINT ["headworks", "serve"]
CMD ["--policy", "{folder}/headworks.toml"]
"""


def render(policy: Policy) -> dict[str, str]:
    """The Dockerfile, and what of the folder stays out of the image."""
    port, why = probe_port(policy)
    ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}{LIVE}', timeout=4)"
    text = TEMPLATE.format(
        base=policy.deploy.base_image, user=USER, port=port, why=why, ask=ask, folder=FOLDER
    )
    return {"Dockerfile": text, ".dockerignore": "**/.git\n**/.venv\n**/__pycache__\n**/.env\n"}
