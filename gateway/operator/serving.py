"""`ashore serve`."""

from __future__ import annotations

import argparse

from gateway import app, logs
from gateway.operator.house import prepare_directory, settings_of


async def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    logs.configure(file=options.log_file, as_json=options.log_json, debug=options.debug)
    settings = settings_of(options)
    if options.port is not None:
        gateway = settings.gateway.model_copy(update={"port": options.port})
        settings = settings.model_copy(update={"gateway": gateway})
    prepare_directory(options.data, make=True)
    return await app.serve(settings, options.data)
