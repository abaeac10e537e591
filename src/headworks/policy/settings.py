"""The policy: every setting there is, with its unit, range and default.

One model per table of the file, in the order of the layers. Values are read by the kinds of
`fields.py`; what must agree between tables is checked on `Policy`; whether the numbers are *wise*
together is the business of `laws.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, WrapValidator, model_validator

from headworks.policy.fields import (
    Bytes,
    Choice,
    Name,
    Networks,
    Ratio,
    RequestRate,
    Seconds,
    Section,
    StoreUrl,
    Text,
    Whole,
    YesNo,
)
from headworks.policy.units import Rate, Secret
from headworks.policy.vendor_settings import BreakerSettings as BreakerSettings
from headworks.policy.vendor_settings import ConnectionSettings as ConnectionSettings
from headworks.policy.vendor_settings import ModelSettings as ModelSettings
from headworks.policy.vendor_settings import TimeoutSettings as TimeoutSettings
from headworks.policy.vendor_settings import VendorSettings as VendorSettings

CLEANUP = 5.0
"""Seconds a pod keeps, after draining, for cleanups and for closing clients and store."""
LAST_WORDS = 1.0
"""Seconds of these that the server waits beyond the drain timeout: time for answers that are ended then
to say so."""
EDGE_MARGIN = 5.0
"""Seconds the gateway waits longer than a request may take, so that the pod answers first."""
MANAGEMENT_PORT = 9000
"""Where `headworks serve` answers probes and metrics, unless the policy says otherwise."""

SPARE_CONNECTIONS = 10_000
"""Connections that a server holds beside those with a place: who waits, is refused, idles or floods."""

Criticality = Literal["background", "sheddable", "default", "critical"]
HeaderDialect = Literal["draft-11", "x-ratelimit", "off"]
Background = Literal["free", "hold"]
GatewayMode = Literal["enforce", "shadow"]
WhenDown = Literal["share", "open", "closed"]
Scope = Literal["user", "tenant", "all"]
Mode = Literal["enforce", "shadow", "off"]
ModeChoice = Annotated[Mode, Choice(("enforce", "shadow", "off"))]
GarbageCollection = Literal["freeze", "leave"]

_HEADER = "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"

DeadlineHeader = Annotated[str, Text(_HEADER, 'a header name, such as "X-Request-Timeout"')]
ClassHeader = Annotated[str, Text(_HEADER, 'a header name, such as "X-Request-Criticality"')]
AppName = Annotated[str, Text(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", 'module:attribute, as in "main:app"')]
Image = Annotated[str, Text(r"[a-z0-9][\w./:@-]{0,254}", 'an image, such as "registry.example/app:1"')]
HostName = Annotated[
    str,
    Text(
        r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", "a name, as api.example.org"
    ),
]
Path = Annotated[str, Text(r"/[\x21-\x7e]{0,255}", 'a path, such as "/chat"')]
TierName = Annotated[str, Text("[a-z0-9][a-z0-9_-]{0,62}", "1 to 63 of a-z, 0-9, _ and -")]
VendorName = Annotated[str, Text("[a-z0-9][a-z0-9_-]{0,62}", "1 to 63 of a-z, 0-9, _ and -")]
Host = Annotated[str, Text("[0-9A-Za-z.:-]{1,255}", 'an address or a name; "0.0.0.0" or "::" for all')]
Key = Annotated[str, Text(r"[\x21-\x7e]{1,256}", "1 to 256 visible ASCII characters")]
TenantName = Annotated[str, Text(r"[\x21-\x7e]{1,128}", "1 to 128 visible ASCII characters")]


class ServiceSettings(Section):
    """What runs, and how long one request may take."""

    name: Name
    """The service's name, in keys, metrics and manifests."""
    app: AppName = "main:app"
    """The ASGI application; its module is looked for beside the policy file first."""
    sla: Annotated[float, Seconds(0.1, 3600)] = 60.0
    """The whole budget of one request: every wait inside the pod respects it, and its answer ends."""
    deadline_header: DeadlineHeader | None = None
    """Where a caller says in how many seconds it stops waiting, if sooner; absent: nowhere."""
    trust: Networks = ()
    """Whose forwarding headers the pods believe: the gateway's addresses."""
    reload: Annotated[float, Seconds(0.1, 3600)] | None = None
    """How often a pod looks whether this file has changed; absent: it is read once."""


class GatewaySettings(Section):
    """Layer 1: who may enter."""

    mode: Annotated[GatewayMode, Choice(("enforce", "shadow"))] = "enforce"
    """Refuse what is over a rate or a number of connections, or let it pass and mark it."""
    total_rate: RequestRate = Rate(2000, 1.0)
    """Requests of all clients together."""
    per_ip_rate: RequestRate = Rate(100, 1.0)
    """Requests of one client address."""
    per_ip_connections: Annotated[int, Whole(1, 65_535)] = 20
    """Requests in progress from one client address."""
    connections: Annotated[int, Whole(64, 1_000_000)] = 4096
    """Connections of all clients together that one gateway holds open."""
    replicas: Annotated[int, Whole(1, 1000)] = 1
    """Gateways side by side; where each counts for itself, each gets its part of every limit."""
    max_body: Annotated[int, Bytes(1, 1024**3)] = 1024**2
    """The largest request body; a larger one is a 413."""
    max_header: Annotated[int, Bytes(2048, 1024**2)] = 16 * 1024
    """The largest request head."""
    header_timeout: Annotated[float, Seconds(0.1, 600)] = 10.0
    """How long a client may take to send its head."""
    body_timeout: Annotated[float, Seconds(0.1, 600)] = 10.0
    """How long a client may pause while it sends its body."""
    upload_timeout: Annotated[float, Seconds(0.1, 3600)] = 30.0
    """How long a client may take to send its request as a whole."""
    connect_timeout: Annotated[float, Seconds(0.01, 60)] = 1.0
    """Opening a connection to a pod."""
    request_timeout: Annotated[float, Seconds(0.1, 7200)] | None = None
    """How long the gateway waits for a pod; absent: `service.sla` + 5s."""
    websocket_idle: Annotated[float, Seconds(1, 86_400)] = 60.0
    """How long a websocket may be silent both ways; no other time of the gateway ends it."""
    attempts: Annotated[int, Whole(1, 5)] = 3
    """Pods a request is offered to, the first included, while offering it twice cannot do it twice."""
    check_interval: Annotated[float, Seconds(0.1, 60)] = 0.2
    """How often the gateway asks each pod whether it is ready."""
    panic: Annotated[float, Ratio(none=True)] = 0.3
    """When a smaller part of the pods than this is ready, all that answer get traffic; 0: never."""
    trust: Networks = ()
    """Whose forwarding headers the gateway believes: the load balancers in front of it."""
    host: HostName | None = None
    """The name clients ask for; absent: whatever they ask for."""
    tls_secret: Name | None = None
    """The Kubernetes Secret with the certificate; absent: TLS ends in front of the gateway."""


class HealthSettings(Section):
    """Layer 2: can this pod take traffic."""

    saturated_for: Annotated[float, Seconds(0.1, 600)] = 10.0
    """How long a pod must be full before it may ask to leave."""
    error_rate_high: Annotated[float, Ratio()] = 0.5
    """The part of answers, failed by the pod's own fault, at which it is not ready."""
    min_samples: Annotated[int, Whole(1, 100_000)] = 20
    """But never on fewer answers than this."""
    drain_delay: Annotated[float, Seconds(0, 600)] = 5.0
    """How long a leaving pod keeps serving, until the gateway has seen that it leaves."""
    drain_timeout: Annotated[float, Seconds(0.1, 7200)] | None = None
    """How long a leaving pod waits for requests in flight; absent: `service.sla`."""


class ManagementSettings(Section):
    """Probes and metrics on a port of their own, for the platform; no gateway routes it."""

    port: Annotated[int, Whole(0, 65_535)] | None = None
    """Where; 0: nowhere. Absent: 9000 under `headworks serve`, nowhere under other servers."""
    host: Host | None = None
    """On which address. Absent: the service's under `headworks serve`, every one under other servers."""
    allow: Networks | None = None
    """Who sees metrics and the reasons of `/ready` on the service's port; absent: `service.trust`."""


class AdmissionSettings(Section):
    """Layer 3: may this pod take one more."""

    max_in_flight: Annotated[int, Whole(1, 100_000)] = 100
    """Requests in one pod at once; one more is a 503, or waits in line."""
    max_websockets: Annotated[int, Whole(1, 100_000)] | None = None
    """Websockets in one pod at once, apart from requests; absent: `max_in_flight`."""
    queue_timeout: Annotated[float, Seconds(0, 600)] = 0.0
    """How long a request may wait in line for a place; 0: there is no line."""
    background_tasks: Annotated[Background, Choice(("free", "hold"))] = "free"
    """Whether a request's background tasks hold its place, or leave it free after the last byte."""
    lag_high: Annotated[float, Seconds(0.001, 60)] | None = None
    """How late the event loop may wake before the pod sheds load; absent: it does not matter."""
    memory_high: Annotated[int, Bytes(1024**2, 1024**4)] | None = None
    """The process's resident memory at which the pod sheds load; absent: it does not matter."""
    criticality_header: ClassHeader | None = None
    """Where callers within `service.trust` may state a request's class; absent: nowhere."""
    shadow: Annotated[bool, YesNo()] = False
    """Refuse nobody, only count who would have been: to try numbers out."""
    backlog: Annotated[int, Whole(1, 65_535)] = 200
    """Connections the operating system holds while the server does not accept."""
    keep_alive: Annotated[float, Seconds(1, 3600)] = 5.0
    """How long the server keeps an idle connection."""
    write_stall: Annotated[float, Seconds(0.1, 3600)] = 15.0
    """A client that reads nothing for so long is cut off."""
    limit_concurrency: Annotated[int, Whole(1, 1_000_000)] | None = None
    """The server's own limit of connections; absent: 10000 above `max_in_flight` + `max_websockets`."""

    @property
    def websockets(self) -> int:
        """Websockets in one pod at once."""
        return self.max_websockets or self.max_in_flight

    @property
    def server_backstop(self) -> int:
        """Connections at which the server itself refuses: set above admission, so it never decides."""
        return self.limit_concurrency or self.max_in_flight + self.websockets + SPARE_CONNECTIONS


class StoreSettings(Section):
    """Where shared state lives; without this table it is in the one process there then may be."""

    url: Annotated[Secret, StoreUrl()]
    """The store's address, or a reference to it."""
    decision_timeout: Annotated[float, Seconds(0.001, 10)] = 0.05
    """How long a decision may wait for the store."""
    when_down: Annotated[WhenDown, Choice(("share", "open", "closed"))] = "share"
    """Without the store: each pod its share of every limit, no limits, or nobody."""


class Limit(Section):
    """A limit that may be watched before it is enforced; a bare rate is enforced."""

    rate: RequestRate
    """Requests."""
    mode: ModeChoice = "enforce"
    """Refuse what is above it, only count what it would refuse, or do not ask it."""
    when_down: Annotated[WhenDown, Choice(("share", "open", "closed"))] | None = None
    """This limit without the store; absent: `store.when_down`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_rate(cls, value: Any) -> Any:
        return {"rate": value} if isinstance(value, (str, Rate)) else value


class Tier(Section):
    """What callers of one tier get."""

    rate: RequestRate
    """Requests of one caller."""
    mode: ModeChoice = "enforce"
    """Refuse what is above `rate`, only count what it would refuse, or do not ask it."""
    tenant_rate: Limit | None = None
    """Requests of all keys of one tenant that have this tier."""
    criticality: Annotated[
        Criticality, Choice(("background", "sheddable", "default", "critical")), Field(alias="class")
    ] = "default"
    """Who goes first when a pod sheds load, and who waits last in a vendor's line."""
    weight: Annotated[int, Whole(1, 1000)] = 1
    """This tier's part of a vendor's line, against the other tiers of its class."""
    when_down: Annotated[WhenDown, Choice(("share", "open", "closed"))] | None = None
    """This tier without the store; absent: `store.when_down`."""


class EndpointLimit(Limit):
    """A limit on one endpoint; a bare rate is per user, and a list holds several."""

    scope: Annotated[Scope, Choice(("user", "tenant", "all"))] = "user"
    """Counted for each user apart, for all keys of a tenant, or for all users together."""


def _one_or_several(value: object, read: Callable[[object], Any], info: ValidationInfo) -> object:
    """Limits that differ in scope or period, one of which stands without a list."""
    if not isinstance(value, (list, tuple)):
        return (EndpointLimit.model_validate(value, context=info.context),)
    limits: tuple[EndpointLimit, ...] = read(value)
    if not limits:
        raise ValueError('[] limits nothing; write a rate, such as "20/min", or leave the path out')
    if len({(limit.scope, limit.rate.period) for limit in limits}) < len(limits):
        raise ValueError("two limits have the same scope and period; the tighter one is enough")
    return limits


EndpointLimits = Annotated[tuple[EndpointLimit, ...], WrapValidator(_one_or_several)]


class KnownKey(Section):
    """Whose a key is; a bare name is its tier."""

    tier: str
    """Its tier."""
    tenant: TenantName | None = None
    """The organisation it belongs to; absent: it stands for itself."""

    @model_validator(mode="before")
    @classmethod
    def _bare_tier(cls, value: Any) -> Any:
        return {"tier": value} if isinstance(value, str) else value


class FairnessSettings(Section):
    """Layer 4: who gets how much."""

    mode: ModeChoice = "enforce"
    """The same for all limits here: each is as its own mode says, or as this one where it says less."""
    tiers: Annotated[dict[TierName, Tier], Field(min_length=1)]
    """What callers get, by the name of their tier."""
    default_tier: str
    """The tier of callers nobody knows; they are counted by client address."""
    total_rate: Limit | None = None
    """Requests of everybody to the whole service."""
    identity: Annotated[str, Text(f"header:{_HEADER}", '"header:NAME", such as "header:X-API-Key"')] = (
        "header:X-API-Key"
    )
    """Where a caller's key stands."""
    endpoints: dict[Path, EndpointLimits] = Field(default_factory=dict)
    """Limits of single endpoints, by path; a caller needs both its tier's and the endpoint's."""
    exempt: tuple[Path, ...] = ()
    """Paths whose requests ask no limits, and count for none."""
    headers: Annotated[HeaderDialect, Choice(("draft-11", "x-ratelimit", "off"))] = "draft-11"
    """How answers tell a caller its limits."""
    keys: dict[Key, KnownKey] = Field(default_factory=dict)
    """Known keys and whose they are, for services without a resolver of their own."""
    cache_ttl: Annotated[float, Seconds(1, 86_400)] = 60.0
    """How long a resolved key is believed."""
    cache_size: Annotated[int, Whole(1, 10_000_000)] = 10_000
    """How many resolved keys a pod remembers."""

    @property
    def identity_header(self) -> str:
        """The header that holds a caller's key, in lower case."""
        return self.identity.removeprefix("header:").lower()


class DeploySettings(Section):
    """What runs the pods."""

    image: Image = "app:latest"
    """The container image."""
    base_image: Image = "python:3.13-slim"
    """What the rendered Dockerfile builds on."""
    namespace: Name | None = None
    """The Kubernetes namespace; absent: `service.name`."""
    replicas: Annotated[int, Whole(1, 10_000)] = 1
    """Pods that run at once."""
    max_replicas: Annotated[int, Whole(1, 10_000)] | None = None
    """Pods to scale up to; absent: there are `replicas`, whatever the load."""
    scale_at: Annotated[float, Ratio()] = 0.7
    """The part of `admission.max_in_flight` in use, on average, above which pods are added."""
    cpu: Annotated[float, Ratio()] = 0.5
    """The part of a core that is reserved for a pod; one process can use one core at most."""
    memory: Annotated[int, Bytes(64 * 1024**2, 1024**4)] = 512 * 1024**2
    """A pod's memory, reserved and at most."""
    store_image: Image | None = None
    """The image of a Valkey to run beside the pods; absent: the store is run by somebody else."""
    store_memory: Annotated[int, Bytes(64 * 1024**2, 1024**4)] = 256 * 1024**2
    """That Valkey's memory; its data gets three quarters."""
    gateway_namespace: Name = "envoy-gateway-system"
    """The namespace from which the gateway reaches the pods."""
    monitoring_namespace: Name = "monitoring"
    """The namespace from which metrics are read."""
    port: Annotated[int, Whole(1, 65_535)] = 8000
    """Where a pod listens."""
    gateway_port: Annotated[int, Whole(1, 65_535)] = 8080
    """Where the gateway listens."""
    garbage_collection: Annotated[GarbageCollection, Choice(("freeze", "leave"))] = "freeze"
    """What `headworks serve` does once a pod has started: freeze what lives, or leave it be."""
    grace: Annotated[float, Seconds(1, 7200)] | None = None
    """How long a leaving pod gets before it is killed; absent: drain delay + drain timeout + 5s."""


class Policy(Section):
    """The whole policy, one attribute per table."""

    schema_: Annotated[Literal[1], Whole(1, 1), Field(alias="schema")]
    """The version of this file's format."""
    service: ServiceSettings
    gateway: GatewaySettings = GatewaySettings()
    health: HealthSettings = HealthSettings()
    management: ManagementSettings = ManagementSettings()
    admission: AdmissionSettings = AdmissionSettings()
    store: StoreSettings | None = None
    fairness: FairnessSettings
    vendors: dict[VendorName, VendorSettings] = Field(default_factory=dict)
    """The vendors the service calls, by name."""
    deploy: DeploySettings = DeploySettings()

    @property
    def namespace(self) -> str:
        """The Kubernetes namespace of the pods."""
        return self.deploy.namespace or self.service.name

    @property
    def request_timeout(self) -> float:
        """Seconds the gateway waits for a pod."""
        return self.gateway.request_timeout or self.service.sla + EDGE_MARGIN

    @property
    def management_port(self) -> int:
        """Where `headworks serve` answers probes and metrics; 0: nowhere but on the service's port."""
        return MANAGEMENT_PORT if self.management.port is None else self.management.port

    @property
    def drain_timeout(self) -> float:
        """Seconds a leaving pod waits for its requests in flight."""
        return self.health.drain_timeout or self.service.sla

    @property
    def grace(self) -> float:
        """Seconds between a pod being told to leave and being killed."""
        return self.deploy.grace or self.health.drain_delay + self.drain_timeout + CLEANUP
