"""`ashore init|check|migrate|doctor|guest build`: making a house, and looking whether it is well."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from backends import guest_tree
from backends.builders.registry import BuilderCheck
from backends.composition import HouseSettings
from backends.compute.registry import computes_of
from backends.registry import Registry
from gateway import health
from gateway.commands.doctor import report
from gateway.operator.house import (
    SETTINGS_FILE,
    address,
    database_of,
    is_served,
    open_records,
    prepare_directory,
    settings_of,
)
from gateway.settings import Settings, example
from storage.errors import AshoreError
from storage.objects.embedded import EmbeddedStore
from storage.settings import ObjectSettings


async def init(options: argparse.Namespace) -> int:
    """Data directory, settings file, schema; what is there already stays as it is."""
    prepare_directory(options.data, make=True)
    _write_settings(options.data / SETTINGS_FILE)
    async with open_records(options, make=True):
        pass
    sys.stdout.write(f"ashore serve --data {options.data}\n")
    return 0


def _write_settings(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(example())
    sys.stderr.write(f"wrote {path}: every setting with its default\n")


async def migrate(options: argparse.Namespace) -> int:
    """Bring the schema up to date."""
    async with open_records(options, make=True):
        sys.stderr.write("the schema is up to date\n")
    return 0


async def guest_build(options: argparse.Namespace) -> int:
    """Copy this machine's OpenSSH server into the data directory, for environments."""
    prepare_directory(options.data, make=True)
    tree = await asyncio.to_thread(guest_tree.build, options.data / "guest")
    sys.stdout.write(f"{tree}\n")
    return 0


async def check(options: argparse.Namespace) -> int:
    """Whether `serve` could start with these settings: settings, schema, object store, computes, disk."""
    settings = settings_of(options)
    prepare_directory(options.data, make=False)
    findings = [health.Finding("settings", True, str(options.config or "as they are"))]
    return _tell(findings + await _of_house(settings, options.data), as_json=options.json)


async def doctor(options: argparse.Namespace) -> int:
    """Whether the house is well: what `check` looks at, and whether it is being served."""
    settings = settings_of(options)
    prepare_directory(options.data, make=False)
    served = is_served(options.data)
    _, port = address(settings, options.data)
    findings = [
        health.Finding("gateway", served, f"serves port {port}" if served else "is not running", "run 'ashore serve'")
    ]
    return _tell(findings + await _of_house(settings, options.data), as_json=options.json)


async def _of_house(settings: Settings, data: Path) -> list[health.Finding]:
    async with AsyncExitStack() as stack:
        database = database_of(settings, data)
        stack.push_async_callback(database.close)
        findings: list[health.Finding] = []
        objects: ObjectSettings | health.Finding | None = _objects(settings, data)
        if isinstance(objects, health.Finding):
            findings.append(objects)
            objects = None
        computes = await stack.enter_async_context(computes_of(settings.backends, data))
        findings = await health.of_house(database, None, computes, data, objects) + findings
    return findings + await _of_images(settings, data)


async def _of_images(settings: Settings, data: Path) -> list[health.Finding]:
    """Registry and builder. Our own registry runs with the gateway, and only that one knows its password."""
    backends = settings.backends
    if not backends.registry.url:
        if not is_served(data):
            own = "our own; starts with 'ashore serve'" if shutil.which("docker-registry") else ""
            found = health.Finding("image registry", True, own) if own else await health.of_registry(None)
            return [found, await health.of_builder(BuilderCheck(backends, data))]
        backends = HouseSettings.read(data / "run" / "house.json").backends
    if not backends.registry.url:
        return [await health.of_registry(None), await health.of_builder(BuilderCheck(backends, data))]
    registry = Registry(backends.registry)
    try:
        findings = await health.of_registry_in_full(registry)
    finally:
        await registry.close()
    return [*findings, await health.of_builder(BuilderCheck(backends, data))]


def _objects(settings: Settings, data: Path) -> ObjectSettings | health.Finding:
    """The endpoint to look at; a finding where there is none to look at."""
    if settings.objects.endpoint:
        return settings.objects
    try:
        running = EmbeddedStore.running(data / "objects", bucket=settings.objects.bucket)
    except AshoreError as error:
        return health.Finding("object store", False, error.message)
    return running or health.Finding("object store", True, "our own; starts with 'ashore serve'")


def _tell(findings: Sequence[health.Finding], *, as_json: bool) -> int:
    sys.stdout.write(report(findings, as_json=as_json, colours=sys.stdout.isatty()))
    return 0 if all(finding.ok for finding in findings) else 1
