"""Sentences of the use cases that people meet in the menu, so that refusals are read in one's own language too.

Use cases speak English: their sentences also go to SSH clients, logs and the audit trail. Here are the patterns of the
ones that the menu shows; what fits none is shown as it came.
"""

from __future__ import annotations

import re
from functools import cache

from tui.texts import Texts, mark

PATTERNS = (
    mark("there is no environment '{name}'"),
    mark("you have an environment '{name}' already"),
    mark(
        "{whose} quota of {resource} is {allowed}, with {used} in use, and this needs {more}: "
        "an administrator can raise it"
    ),
    mark("the workspace {name}'s"),
    mark("'{name}' is being deleted"),
    mark("'{name}' did not come up in time"),
    mark("'{name}' failed: {reason}"),
    mark("'{name}' does not run"),
    mark("'{name}' does not run: start it first"),
    mark("there is no compute '{name}' (offered: {offered})"),
    mark("the compute '{name}' is not there now"),
    mark("only administrators may do this"),
    mark("there is no host '{name}' (offered: {offered})"),
    mark("no available host ({reasons})"),
    mark("the compute '{name}' has no GPUs"),
    mark("the number of GPUs must be between 0 and {most}"),
    mark("GPU lost: {names}"),
    mark("GPU lost, and no other can be had ({reason})"),
    mark("the host's Docker gives no GPUs: it needs the NVIDIA Container Toolkit"),
    mark("it has no {noun}"),
    mark("it has {there} {noun}, {count} needed"),
    mark("'{text}' is not a number of GPUs: write for example 1"),
    mark("there is no application '{name}' (offered: {offered})"),
    mark("the application '{name}' was chosen twice"),
    mark("the applications '{other}' and '{name}' listen on the same port"),
    mark("'{name}' starts no applications: what listens there, everybody on that machine can reach"),
    mark("'{name}' is not in this environment: {install}; it starts by itself then"),
    mark("it ended with status {status}, and is started again; why may stand in {path}/log"),
    mark("its environment does not run"),
    mark("'{text}' is no port: write for example 8000"),
    mark("{port} is no port: write 1 to 65535"),
    mark("a port was chosen twice"),
    mark("an environment may publish {count} ports at most"),
    mark("all ports that this gateway may publish are taken: an administrator can add more"),
    mark("'{name}' cannot start on its host {host} now ({reason})"),
    mark("its host {host} does not answer"),
    mark("the host '{name}' is online and in the settings: take it out of them first"),
    mark("the host '{name}' has environments ({count}): delete them first"),
    mark("the disk of the host's Docker engine is full: no space left on device"),
    mark("the host's engine is Podman, which gives no GPUs to containers"),
    mark("the engine does not answer"),
    mark("'local' takes no image: it shows this machine's own system, read only"),
    mark("'{name}' is not open to you: an administrator can add you to its settings"),
    mark("'{name}' takes no image: it is a machine as it is"),
    mark("'{name}' cannot limit cores and memory: leave them out"),
    mark("'{name}' takes no data sets and models yet: nothing is copied to other machines"),
    mark("the machine '{name}' does not answer"),
    mark("the machine was started anew"),
    mark("its folder on the machine was removed"),
    mark("cpus must be between 0 (the default) and {most}"),
    mark("memory must be at least 64MiB, or 0 for the default"),
    mark("memory must be at most {most}"),
    mark(
        "'{name}' is no possible {kind} name: use 1 to 48 of a-z 0-9 . _ - and begin and end with a letter or a digit"
    ),
    mark("'{text}' is not a size: write for example 512MiB or 16GiB"),
    mark("'{text}' is more than any machine has"),
    mark("'{text}' is not a number of processors: write for example 2 or 0.5"),
    mark("there is no image '{image}' here, and no registry gave it ({reason})"),
    mark("the registry {host} does not answer, so '{image}' cannot be fetched"),
    mark("the image '{image}' was deleted"),
    mark(
        "the image '{image}' is not shared with '{name}' any more: ask its owner to share it again, or make an "
        "environment from another one"
    ),
    mark("the official image '{image}' is not in the registry of this house any more"),
    mark(
        "{whose} quota of {resource} is full ({used} of {allowed}): delete images or data sets, or ask an "
        "administrator to raise it"
    ),
    mark("'{text}' ends with a colon: write NAME:TAG, or NAME alone for latest"),
    mark("'{image}' is an official image: it comes from the {place}, where an administrator changes it"),
    mark(
        "the base '{base}' cannot be fetched: see 'image list' and how it is spelt, or ask an administrator whether "
        "this gateway reaches {host}"
    ),
    mark("the image has no /bin/sh, which an environment needs"),
    mark("the Docker engine does not answer"),
    mark("this is your only key: add another one first, or you could not log in again"),
    mark("this key is in use already"),
    mark("this is far too long for a public key"),
    mark("there is no key here: {example}"),
    mark("the key itself is missing: {example}"),
    mark("'{kind}' is not a type of key that is known here: {example}"),
    mark("this key is damaged or cut off: copy the whole line again"),
    mark("this key is damaged: copy the whole file again"),
    mark("these are several keys: paste one at a time"),
    mark("this is a PRIVATE key: never give it away; paste the public one, the file that ends in .pub"),
    mark(
        "an RSA key of {bits} bits is too short: at least {least} are needed, or make one with 'ssh-keygen -t ed25519'"
    ),
    mark("DSA keys are not safe any more: make a new one with 'ssh-keygen -t ed25519'"),
    mark("this is a certificate: paste the public key that it was made for"),
    mark("options before a key are not taken: paste the line from the key's type on"),
    mark("paste one line like 'ssh-ed25519 AAAA... name', as in ~/.ssh/id_ed25519.pub"),
    mark("there is no open session '{id}'"),
    mark("there is no upload '{id}'"),
    mark("this upload is {state}: there is nothing to end"),
    mark("this upload has come to its end meanwhile"),
    mark("there is no file '{path}'"),
    mark("there is no directory '{path}'"),
    mark("there is a file '{path}' already"),
    mark("there is no '{path}'"),
    mark("there is a '{path}' already"),
    mark("'{path}' exists already"),
    mark("'{path}' cannot be removed"),
    mark("'{path}' cannot be changed"),
    mark("the directory '{path}' is not empty"),
    mark("the {kind} '{name}' has versions; remove them first"),
    mark("the {kind} '{name}' has a version '{version}' already"),
    mark("the {kind} '{name}' has no version {version}"),
    mark("the {kind} '{name}' belongs to another workspace and is read-only here"),
    mark("a former {kind} '{name}' is still being deleted, try again soon"),
    mark("'{name}' has no files: there is nothing to publish"),
    mark("'{name}' is {state} already"),
    mark(
        "'{name}' cannot be published while uploads to it are unfinished ({count}):"
        " go on with them, or end them with 'upload abort'"
    ),
    mark("'{name}' is mounted in {users}: delete that environment first"),
    mark("'{name}' was chosen twice"),
    mark("'{name}' is broken and cannot be mounted"),
    mark("'{name}' is not published yet: only its own workspace may mount it"),
    mark("'{name}' cannot be read by '{user}' any more"),
    mark("an environment takes {count} data sets and models at most"),
    mark(
        "there is no room for {name} on this machine: it has {size} GiB, {lacking} GiB too much;"
        " delete environments that hold other data, or ask the operator"
    ),
    mark(
        "there is no room for {name} on the host {host}: it has {size} GiB, {lacking} GiB too much;"
        " delete environments that hold other data, or ask the operator"
    ),
    mark("{name} was changed while it was copied ('{path}')"),
    mark("{name} cannot be kept on this machine: {reason}"),
    mark("{name} cannot be kept on the host {host}: {reason}"),
    mark("{name} is not to be seen on this machine: there is no folder {folder}; is the bucket mounted at {root}?"),
    mark("{name} is not to be seen on the host {host}: there is no folder {folder}; is the bucket mounted at {root}?"),
    mark("'{name}' is linked by {links}: remove those links first"),
    mark("'{name}' is private: set its visibility to workspace before it is shared"),
    mark("'{name}' belongs to the workspace '{workspace}' itself"),
    mark("'{name}' is not shared with '{workspace}'"),
    mark("'{name}:{version}' leads to a version that is gone or not shared with you any more"),
    mark("visibility is one of private, workspace, public"),
    mark("'{text}' cannot be a {kind}: use one word of up to {count} letters"),
    mark("more than {count} tags are not kept"),
    mark("/shared is read-only: it shows what other workspaces keep"),
    mark("'{name}' is published and cannot be changed"),
    mark("only its owner may change the {kind} '{name}'"),
    mark("files and directories go below a version: /{folder}/NAME/VERSION/..."),
    mark("directories can be renamed within one version only"),
    mark("'{path}' has control characters in it"),
    mark("no sign of life for {span}"),
    mark("nobody came within {span}"),
    mark("its last session ended {span} ago"),
    mark("its schedule: {cron}"),
    mark("its schedule could not start it: {reason}"),
    mark("the image is made for CUDA {wanted}, and its host's driver knows CUDA {known}"),
    mark("its output waits: {reason}"),
    mark("keeping its output: {size} in {n} files"),
    mark("it was not deleted: {reason}; make room, or use --discard-output"),
    mark("its output holds more than {size}, and no more is kept of one environment"),
    mark("/artifacts is read-only: it keeps what environments left; remove one as a whole with: artifact delete NAME"),
    mark("'{text}' is no number of days: write for example 14, or 0"),
    mark("times of start and stop need the life cycle 'scheduled'"),
    mark("a time of idleness needs the life cycle 'ephemeral' or 'on-demand'"),
    mark("a time of idleness is between 1 minute and 365 days"),
    mark("a scheduled environment needs a time of start or stop, such as '0 8 * * MON-FRI'"),
    mark(
        "'{text}' is no cron expression: write minute, hour, day of month, month and day of week, "
        "such as '0 8 * * MON-FRI'"
    ),
    mark("'{text}' never comes"),
    mark("start and stop are at the same time"),
    mark("there is no time zone '{name}': write it like Europe/Berlin"),
    mark("'{text}' is no length of time: write for example 30m, 2h or 1h30m"),
    mark("the database is busy or away, please try again"),
    mark("there is no {kind} '{name}'"),
    mark("there is a {kind} '{name}' already"),
    *(mark("{n} s"), mark("{n} min"), mark("{n} h"), mark("{n} d")),  # inside of others
    mark("FROM is not allowed: the base is chosen with --base, and is put in front"),
    mark("EXPOSE is not allowed: ports are reached through ssh -L, none needs to be named"),
    mark("CMD is not allowed: an environment starts what Ashore needs in it"),
    mark("ENTRYPOINT is not allowed: an environment starts what Ashore needs in it"),
    mark("USER is not allowed: who logs in is decided when an environment is made"),
    mark("ONBUILD is not allowed: what it says would run in somebody else's build"),
    mark("'# syntax=' is not allowed: it would run a parser from elsewhere"),
    mark("there is no instruction in it"),
    mark("there is no instruction '{word}' (did you mean {other}?)"),
    mark("there is no instruction '{word}'"),
    mark("{word} needs an argument"),
    mark("this quote has no end"),
    mark("this heredoc has no end: no line is just '{name}'"),
    mark("ADD of an address is not allowed: fetch it with RUN curl or RUN git"),
    mark("RUN --mount is not offered: leave it out; what has not changed is taken from the cache anyway"),
    mark("COPY --from is not allowed: there are no other stages, and no other images than the base"),
    mark("step {step} of {steps} (line {line}) failed: {reason}"),
    mark("step {step} of {steps} failed: {reason}"),
    mark("exit status {status}"),
    mark("it took longer than {minutes} minutes"),
    mark("you have {count} builds that wait or run: wait for one of them, or cancel it"),
    mark("the image '{name}' is being made already"),
    mark("the build of '{name}' is over: {state}"),
    mark("this house builds no images: an administrator can set backends.builds.builder"),
)
_NOUNS = {
    "environment": mark("environment"),
    "data set": mark("data set"),
    "model": mark("model"),
    "version": mark("version"),
    "workspace": mark("workspace"),
    "tag": mark("tag"),
    "published": mark("published"),
    "your": mark("your"),
    "environments": mark("environments"),
    "CPUs": mark("CPUs"),
    "memory": mark("memory"),
    "GPUs": mark("GPUs"),
    "storage": mark("storage"),
    "settings": mark("settings"),
    "registry": mark("registry"),
}


def in_language(texts: Texts, sentence: str) -> str:
    """`sentence` in the language of `texts` where it is known. Several, joined by `; `, are looked up one by one."""
    if texts.language == "en":
        return sentence
    whole = _translated(texts, sentence)
    if whole is not None:
        return whole
    return "; ".join(_translated(texts, part) or part for part in sentence.split("; "))


def _translated(texts: Texts, sentence: str) -> str | None:
    for pattern, expression in _compiled():
        if match := expression.fullmatch(sentence):
            found = {name: _noun(texts, value) for name, value in match.groupdict().items()}
            return texts(pattern, **found) if found else texts(pattern)
    return None


def _noun(texts: Texts, value: str) -> str:
    return texts(_NOUNS[value]) if value in _NOUNS else _translated_or_same(texts, value)


def _translated_or_same(texts: Texts, value: str) -> str:
    """A sentence may hold another one: `'train' failed: the Docker engine does not answer`."""
    return (_translated(texts, value) or value) if " " in value else value


@cache
def _compiled() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((pattern, re.compile(_expression(pattern))) for pattern in PATTERNS)


def _expression(pattern: str) -> str:
    parts = re.split(r"\{(\w+)\}", pattern)
    return "".join(f"(?P<{part}>.+?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
