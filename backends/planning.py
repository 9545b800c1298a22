"""What a request for an environment becomes: compute, host, limits, GPUs, mounts, and all that speaks against it.

Asked by the dry run, by the form while people type, and by the transaction that makes or starts an environment.
Records nothing but a reservation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select

from backends import application_templates, machines, port_rows
from backends.compute.contract import Compute
from backends.compute.places import host_of, kind_of
from backends.gpus import GpuNeed, asked
from backends.images import Chosen, Images
from backends.lifecycle import LifecycleChoice
from backends.limits import Limits, Machine
from backends.mounts import Choice, PlannedMount, plan_mounts
from backends.reservations import Ask, Reservations, gpu_need
from backends.settings import BackendSettings
from storage.access import Caller
from storage.database.transaction import Transaction
from storage.errors import BadInput, Conflict, NotFound, Unavailable
from storage.names import check_resource, printable
from storage.quota_limits import RUNNING, Amounts, QuotaLine, Resource
from storage.quotas import Owner, Quotas, refusals_of
from storage.records import Environment

ELSEWHERE = (
    "this image is in the gateway's own registry, which its machine alone reaches: an administrator can set "
    "backends.registry.url"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True)
class Request:
    """What somebody asks for. Empty values take the defaults of the settings."""

    name: str
    compute: str = ""
    image: str = ""
    cpus: float = 0.0
    memory: int = 0
    """Bytes."""
    variables: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[Choice] = ()
    """Data sets and models to see inside; the order of each kind numbers its paths."""
    lifecycle: LifecycleChoice = LifecycleChoice()
    keep_output_days: int | None = None
    """For how long its output is kept when it is deleted; 0: not at all; None: as the settings say."""
    host: str = ""
    """Of a compute that has several; empty: one that has room."""
    gpus: int = 0
    gpu_model: str = ""
    """Part of the name of the model, or of a MIG profile. With it, or with a mode, 0 GPUs mean one."""
    gpu_mode: str = ""
    """`exclusive` (also what empty means), `shared`, `mig` or `none`."""
    applications: Sequence[str] = ()
    """Programs that are started in it, by the names of `application_templates`."""
    ports: Sequence[int] = ()
    """Ports inside that are published at once."""


@dataclass(frozen=True)
class Plan:
    """What a request would become, with every reason why it cannot; the dry run and the form's live hints."""

    request: Request
    """With the CPUs and the memory that it would get."""
    compute: str
    image: str
    refusals: Sequence[str]
    quotas: Sequence[QuotaLine] = ()
    """What its owner and its workspace use and may use."""
    over_quota: Sequence[str] = ()
    """Those refusals that the quotas are the reason of."""
    processes: int = 0
    """Processes and threads that it may have; 0: its compute does not say."""
    mounts: Sequence[PlannedMount] = ()
    host: str = ""
    """The host that it would get; empty for a compute without hosts."""
    no_room: Sequence[str] = ()
    """Those refusals that say that no host has room for it now."""
    missing: Sequence[str] = ()
    """Those refusals that say that its image is not there, or may not be seen."""
    gpus: GpuNeed = GpuNeed()
    cards: Mapping[str, str] = field(default_factory=dict)
    """UUID → model of the GPUs that it would get."""
    warnings: Sequence[str] = ()
    """What may go wrong all the same."""
    image_id: str = ""
    image_digest: str = ""
    """Of an image that the house keeps."""
    reference: str = ""
    """What its engine gets for `image`."""


@dataclass(frozen=True)
class _Placed:
    """A request with the CPUs and the memory that it gets, and its host; or why there is none."""

    request: Request
    host: str = ""
    no_room: Sequence[str] = ()
    wrong: Sequence[str] = ()
    """What can never be."""
    cards: Mapping[str, str] = field(default_factory=dict)


class Planner:
    """Plans over the computes that serve now, and reservations on their hosts."""

    def __init__(
        self, computes: Mapping[str, Compute], settings: BackendSettings, quotas: Quotas, images: Images
    ) -> None:
        self._computes = computes
        self._settings = settings
        self._quotas = quotas
        self._images = images
        self._reservations = Reservations(settings)
        self.applications = application_templates.templates_of(settings.applications)
        """What may be asked for with `Request.applications`."""
        self.limits = Limits.of(settings.environments, Machine.here())
        """What one environment gets, and may have, on this machine. On a host it depends on that host."""

    def offered(self, caller: Caller) -> Sequence[str]:
        """Names of the computes that serve and take the caller, the default first."""
        default = self.default_compute()
        known = self._settings.machines
        names = [name for name in self._kinds() if name not in known or machines.may_use(caller, name, known[name])]
        return sorted(names, key=lambda name: (name != default, name))

    def hosts_of(self, compute: str) -> Sequence[str]:
        """The hosts of a compute, by name; none for one that is a single machine."""
        return sorted(host_of(place) for place in self._computes if kind_of(place) == compute and host_of(place))

    def is_machine(self, compute: str) -> bool:
        """Whether it is an existing machine: no image, no limits, no data."""
        return compute in self._settings.machines

    def default_compute(self) -> str:
        """The compute of requests that name none; empty if none serves."""
        wanted = self._settings.environments.default_compute
        if wanted:
            return wanted
        kinds = self._kinds()
        return "docker" if "docker" in kinds else next(iter(kinds), "")

    def _kinds(self) -> Sequence[str]:
        """The computes that serve, each once."""
        return tuple(dict.fromkeys(kind_of(place) for place in self._computes))

    async def hold(self, tx: Transaction, caller: Caller, request: Request) -> None:
        """Nobody else takes of the caller's quota, or of the hosts, until `tx` ends."""
        await self._quotas.hold(tx, Owner.of(caller))
        await self._reservations.hold(tx, request.compute or self.default_compute())

    async def plan(self, tx: Transaction, caller: Caller, request: Request) -> Plan:
        """What it would become as things stand."""
        compute = request.compute or self.default_compute()
        refusals: list[str] = []
        try:
            check_resource(request.name, kind="environment")
        except BadInput as error:
            refusals.append(error.message)
        else:
            taken = await tx.scalar(
                select(Environment.id).where(Environment.owner_id == caller.user_id, Environment.name == request.name)
            )
            if taken:
                refusals.append(f"you have an environment '{request.name}' already")
        if compute not in self._kinds():
            offered = ", ".join(self.offered(caller)) or "none serves now"
            refusals.append(f"there is no compute '{printable(compute, limit=40)}' (offered: {offered})")
        if compute == "local" and request.image:
            refusals.append("'local' takes no image: it shows this machine's own system, read only")
        image, against_image, missing = await self._image(tx, caller, compute, request.image)
        refusals += against_image
        need, wrong = asked(request.gpus, request.gpu_model, request.gpu_mode)
        need = replace(need, workspace_id=caller.workspace_id)
        placed = self._on_machine(caller, compute, request, need)
        placed = placed or await self._placed(tx, compute, request, need, self._only_here(image.image_id))
        request = placed.request
        refusals += [*wrong, *placed.wrong, *placed.no_room, *_check_variables(request)]
        quotas = await self._quotas.lines_of(tx, Owner.of(caller), RUNNING)
        machine = compute if self.is_machine(compute) else ""
        refusals += application_templates.refusals(self.applications, request.applications, machine=machine)
        refusals += port_rows.refusals(self._settings.ports, request.ports, machine=machine)
        over = refusals_of(caller, quotas, amounts(request.cpus, request.memory, need.count, is_new=True))
        mounts, against = await plan_mounts(tx, caller, request.data)
        refusals += over + list(against) + request.lifecycle.refusals()
        return Plan(
            request, compute, image.title, refusals, quotas, over, self._processes(compute), mounts=mounts,
            host=placed.host, no_room=placed.no_room, missing=missing, gpus=need, cards=placed.cards,
            image_id=image.image_id, image_digest=image.digest, reference=image.reference,
        )  # fmt: skip

    async def _image(
        self, tx: Transaction, caller: Caller, compute: str, written: str
    ) -> tuple[Chosen, Sequence[str], Sequence[str]]:
        """What the written name means, what speaks against it, and what of that is that there is no such image."""
        try:
            if written:
                return await self._images.resolve(tx, caller, written), (), ()
            if compute == "docker":
                return self._images.plain(self._settings.docker.default_image), (), ()
        except NotFound as error:
            return Chosen(written, ""), [error.message], [error.message]
        except (BadInput, Conflict) as error:
            return Chosen(written, ""), [error.message], ()
        return Chosen("", ""), (), ()

    def _only_here(self, image_id: str) -> str:
        """Why an environment of this image can run on the gateway's own machine only."""
        return ELSEWHERE if image_id and self._images.is_here_only else ""

    def _on_machine(self, caller: Caller, compute: str, request: Request, gpus: GpuNeed) -> _Placed | None:
        """On an existing machine; None: it is no machine."""
        machine = self._settings.machines.get(compute)
        if machine is None:
            return None
        limited = bool(request.cpus or request.memory)
        wrong = machines.refusals(
            caller, compute, machine, image=request.image, limited=limited, has_data=bool(request.data)
        )
        if request.host:
            wrong.append(f"'{compute}' is one machine: leave the host out")
        if gpus.count:
            wrong.append(f"'{compute}' gives out no GPUs: it is a machine as it is")
        return _Placed(replace(request, cpus=0.0, memory=0), wrong=wrong)

    async def _placed(self, tx: Transaction, compute: str, request: Request, gpus: GpuNeed, only_here: str) -> _Placed:
        hosts = self.hosts_of(compute)
        cpus, memory = self.limits.filled(request.cpus, request.memory)
        filled = replace(request, cpus=cpus, memory=memory)
        if request.host and request.host not in hosts:
            named, offered = printable(request.host, limit=48), ", ".join(hosts) or "none"
            return _Placed(filled, wrong=[f"there is no host '{named}' (offered: {offered})"])
        if not hosts:
            without = [f"the compute '{printable(compute, limit=40)}' has no GPUs"] if gpus.count else []
            return _Placed(filled, wrong=[*self.limits.refusals(cpus, memory), *without])
        ask = Ask(request.cpus, request.memory, gpus, only_here)
        found = await self._reservations.choose(tx, compute, [request.host] if request.host else hosts, ask)
        if found.offer is None:
            if found.is_never:
                return _Placed(filled, wrong=found.sentence.split("; "))
            return _Placed(filled, no_room=[found.sentence])
        need = found.offer.need
        return _Placed(
            replace(request, cpus=need.cpus, memory=need.memory), found.offer.room.host,
            cards={card.uuid: card.words for card in found.offer.cards},
        )  # fmt: skip

    async def reserve(self, tx: Transaction, environment: Environment) -> None:
        """Take room on its host again. Unavailable: there is none now.

        It stays where its home is; one that was never made may go elsewhere. GPUs are those that it had, if they are
        free.
        """
        if not environment.host or environment.reserves:
            return
        await self._reservations.hold(tx, environment.compute)
        only_here = self._only_here(environment.image_id)
        ask = Ask(environment.cpus, environment.memory, gpu_need(environment), only_here)
        hosts = self.hosts_of(environment.compute)
        offer, against = await self._reservations.again(tx, environment.compute, environment.host, ask)
        if environment.host not in hosts:
            against = "it is not in the settings"
        if against and environment.started is None and not environment.handle:
            found = await self._reservations.choose(tx, environment.compute, hosts, ask)
            if found.offer is not None:
                offer, environment.host, against = found.offer, found.offer.room.host, ""
        if against:
            raise Unavailable(f"'{environment.name}' cannot start on its host {environment.host} now ({against})")
        environment.cards = {card.uuid: card.words for card in offer.cards}
        environment.reserves = True

    def _processes(self, compute: str) -> int:
        settings = self._settings
        return {"local": settings.local.pids_limit, "docker": settings.docker.pids_limit}.get(compute, 0)


def amounts(cpus: float, memory: int, gpus: int, *, is_new: bool) -> Amounts:
    """What an environment takes when it starts."""
    running: dict[Resource, float] = {Resource.CPUS: cpus, Resource.MEMORY: memory, Resource.GPUS: gpus}
    return {Resource.ENVIRONMENTS: 1, **running} if is_new else running


def _check_variables(request: Request) -> list[str]:
    refusals = []
    for name, value in request.variables.items():
        shown = printable(name, limit=40)
        if not _VARIABLE.fullmatch(name) or name.startswith(("LD_", "ASHORE_")):
            refusals.append(f"'{shown}' cannot be set as an environment variable")
        elif any(mark in value for mark in "\n\r\0"):
            refusals.append(f"the value of '{shown}' must be one line")
    return refusals
