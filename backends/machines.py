"""What existing machines take, and from whom. Pure; how they are reached is `compute.ssh`' business."""

from __future__ import annotations

from backends.settings import MachineSettings
from storage.access import Action, Caller, SharedMachine, decide


def shared(name: str, settings: MachineSettings) -> SharedMachine:
    """The machine as `decide()` sees it."""
    return SharedMachine(name, frozenset(settings.users), frozenset(settings.workspaces))


def may_use(caller: Caller, name: str, settings: MachineSettings) -> bool:
    """Whether the caller may have environments there."""
    return decide(caller, Action.MACHINE_USE, shared(name, settings)).allowed


def refusals(
    caller: Caller, name: str, settings: MachineSettings, *, image: str, limited: bool, has_data: bool
) -> list[str]:
    """Why no environment may be made there; a sentence each. `limited`: cores or memory were named."""
    decision = decide(caller, Action.MACHINE_USE, shared(name, settings))
    if not decision.allowed:
        return [decision.reason]
    found = []
    if image:
        found.append(f"'{name}' takes no image: it is a machine as it is")
    if limited:
        found.append(f"'{name}' cannot limit cores and memory: leave them out")
    if has_data:
        found.append(f"'{name}' takes no data sets and models yet: nothing is copied to other machines")
    return found
