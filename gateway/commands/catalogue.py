"""All nouns, in the order that `help` shows them. A new file of this folder is added here and nowhere else."""

from __future__ import annotations

from gateway.commands import (
    audit,
    config,
    dataset,
    doctor,
    env,
    host,
    image,
    importing,
    invite,
    key,
    model,
    quota,
    record,
    session,
    upload,
    user,
    version,
    whoami,
)
from gateway.commands.help import noun as help_noun
from gateway.commands.parsing import Noun

_ALL = (
    whoami.NOUN, env.NOUN, image.NOUN, dataset.NOUN, model.NOUN, upload.NOUN, importing.NOUN, quota.NOUN, key.NOUN,
    session.NOUN, record.NOUN, config.NOUN, doctor.NOUN, host.NOUN, user.NOUN, invite.NOUN, audit.NOUN, version.NOUN,
)  # fmt: skip

NOUNS: dict[str, Noun] = {noun.name: noun for noun in (*_ALL, help_noun(_ALL))}
