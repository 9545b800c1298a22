"""The settings of the whole house: one TOML file, one group per room, the environment on top.

`load` is the only reader; every part receives its own group and never looks anything up. What a setting means stands
in its docstring, which is also its documentation: `example` prints them all. No values are read at import.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from backends.settings import BackendSettings, ImportSettings
from storage.errors import BadInput
from storage.names import printable
from storage.settings import AuditSettings, DatabaseSettings, Group, ObjectSettings, QuotaSettings

PREFIX = "ASHORE_"
# Kubernetes gives every pod variables about a service called "ashore"; they are no settings of ours.
_OF_KUBERNETES = re.compile(
    r"ASHORE_(?!\w*__)(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?=|PORT_\d+_(TCP|UDP)(_\w+)?=|PORT=\w+://).*", re.DOTALL
)

Count = Annotated[int, Field(ge=1)]


class GatewaySettings(Group):
    port: Annotated[int, Field(ge=0, le=65535)] = 2022
    """TCP port of everything that Ashore offers. 0: any free one; the `ready` line tells which."""
    address: str = ""
    """Address to listen on. Empty: all, IPv4 and IPv6."""
    public_name: str = ""
    """Host name under which people reach this gateway; `ssh gw config` and invitations show it. Empty: this
    machine's own name."""
    login_grace_seconds: Count = 30
    """A connection that has not logged in after this time is closed, seconds."""
    attempts: Count = 6
    """Failed attempts to log in on one connection. An agent with many keys uses one attempt for each."""
    unauthenticated: Count = 256
    """Connections that may wait to log in, from everywhere together. One more, and the one that has waited longest
    is closed."""
    unauthenticated_per_address: Count = 64
    """The same for one address (of IPv6: one /64 network)."""
    ban_failures: Count = 10
    """Failed connections after which an address (of IPv6: its /64 network) is turned away for a while."""
    ban_seconds: Count = 600
    """How long an address is turned away, and how long its failures are remembered, seconds."""
    sessions_per_connection: Count = 64
    """Shells, commands and transfers that one connection may have open at the same time."""
    forwards_per_connection: Count = 256
    """Forwarded connections that one connection may have open at the same time; an editor window uses a handful."""
    keepalive_seconds: Count = 30
    """A silent client is asked for a sign of life after this time, seconds."""
    keepalive_count: Count = 3
    """Unanswered questions after which the connection is given up."""
    menu_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that draw menus. 0: one less than this machine has cores, and at least two."""
    banner: str = ""
    """Text that clients show before they log in. Empty: none."""


class Settings(BaseSettings):
    """Everything that can be set, by room."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    gateway: GatewaySettings = GatewaySettings()
    """The door: port, limits, what people see before they log in."""
    backends: BackendSettings = BackendSettings()
    """Where environments run."""
    imports: ImportSettings = ImportSettings()
    """Data sets and models from elsewhere."""
    database: DatabaseSettings = DatabaseSettings()
    """Where records are kept."""
    objects: ObjectSettings = ObjectSettings()
    """Where data sets are kept."""
    quotas: QuotaSettings = QuotaSettings()
    """What everybody may use. `quota set` makes exceptions for a person or a workspace, `quota show` tells. Limits on
    the number of environments, on a workspace's storage and on interrupted uploads stand with those things:
    `backends.environments.limit_per_user`, `objects.workspace_gib`, `objects.parked_most` and `objects.parked_gib`."""
    audit: AuditSettings = AuditSettings()
    """What is recorded."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what `load` read from the file."""
        return env_settings, init_settings


def load(path: Path | None) -> Settings:
    """The settings of `path` (None: the defaults), with the environment on top.

    BadInput with one sentence that names the file or variable and the key; it never shows a value.
    """
    from_file = {} if path is None else _read(path)
    _check_variables(os.environ)
    try:
        return Settings(**from_file)
    except SettingsError as error:
        raise BadInput(f"a setting in the environment cannot be read: {error}") from None
    except ValidationError as error:
        raise BadInput(_sentence(error, from_file, path)) from None


def example() -> str:
    """A TOML file with every setting, its default and its documentation, each default commented out."""
    lines = [
        "# Ashore's settings. A line with a single '#' shows a default: take the '#' away to change it.",
        f"# The environment wins: {PREFIX}GATEWAY__PORT=2200 sets 'port' of [gateway].",
    ]
    for path, group, documentation in _groups("", Settings, ""):
        lines += ["", ""] + [f"## {line}" for line in textwrap.wrap(documentation, 100)] + [f"[{path}]"]
        tables: list[str] = []
        for name, field in group.model_fields.items():
            if isinstance(field.default, BaseModel):
                continue
            if (entry := _entry(field.annotation)) is not None:
                header = f"# [[{path}.{name}]]" if field.default == () else f"# [{path}.{name}.NAME]"
                tables += ["", ""] + _words(field) + [header] + _settings(entry)
                continue
            lines += [*_words(field), f"# {name} = {_toml(field.default)}"]
        lines += tables
    return "\n".join(lines) + "\n"


def _settings(group: type[BaseModel]) -> list[str]:
    found: list[str] = []
    for name, field in group.model_fields.items():
        default = "" if field.is_required() else field.default
        found += [*_words(field), f"#   {name} = {_toml(default)}"]
    return found


def _words(field: FieldInfo) -> list[str]:
    return [f"## {line}" for line in textwrap.wrap(" ".join((field.description or "").split()), 100)]


def _entry(annotation: object) -> type[BaseModel] | None:
    """What the tables of a setting like `hosts`, or `official`, look like; None for every other setting."""
    parts = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(parts[0], type) and issubclass(parts[0], BaseModel):
        return parts[0]
    if get_origin(annotation) in (dict, Mapping) and isinstance(parts[1], type) and issubclass(parts[1], BaseModel):
        return parts[1]
    return None


def _groups(path: str, model: type[BaseModel], documentation: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    if any(not isinstance(field.default, BaseModel) for field in model.model_fields.values()):
        yield path, model, documentation
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            below = f"{path}.{name}" if path else name
            words = " ".join((field.description or "").split())
            yield from _groups(below, type(field.default), words)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, SecretStr):
        return '""'
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from error


def _check_variables(environment: Mapping[str, str]) -> None:
    # pydantic-settings checks what is inside a known group, and silently passes over everything else.
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or _OF_KUBERNETES.fullmatch(f"{variable}={environment[variable]}"):
            continue
        group = variable.removeprefix(PREFIX).split("__")[0].lower()
        if group not in Settings.model_fields:
            raise BadInput(
                f"{printable(variable, limit=80)} in the environment is no setting:"
                f" after {PREFIX} comes one of {', '.join(Settings.model_fields).upper()}, then two underscores"
            )


def _sentence(error: ValidationError, from_file: Mapping[str, Any], path: Path | None) -> str:
    problem = error.errors(include_input=False, include_context=False, include_url=False)[0]
    keys = [str(part) for part in problem["loc"]]
    source = _source(keys, from_file, path)
    key = printable(".".join(keys), limit=120)
    if problem["type"] == "extra_forbidden":
        return f"{source}: there is no setting '{key}'{_suggestion(keys)}"
    return f"{source}: '{key}' is wrong: {printable(problem['msg'])}"


def _source(keys: list[str], from_file: Mapping[str, Any], path: Path | None) -> str:
    known = {name.upper() for name in os.environ}
    for length in range(len(keys), 0, -1):
        variable = PREFIX + "__".join(keys[:length]).upper()
        if variable in known:
            return f"{variable} in the environment"
    return str(path) if path is not None and keys[0] in from_file else "the settings"


def _suggestion(keys: list[str]) -> str:
    model: type[BaseModel] = Settings
    for key in keys[:-1]:
        field = model.model_fields.get(key)
        if field is None or not isinstance(field.default, BaseModel):
            return ""
        model = type(field.default)
    close = difflib.get_close_matches(keys[-1], model.model_fields, n=1)
    return f" (did you mean '{'.'.join([*keys[:-1], close[0]])}'?)" if close else ""
