"""What is done on a machine, as programs for its /bin/sh. Pure functions; nothing here connects to anything.

An environment is a folder `<base>/<id>` of the account:

    label    the environment's id, name, owner and workspace; what has none is not ours
    state    `running BOOT` or `stopped BOOT`: a machine that was started anew runs nothing any more
    home/    HOME of its programs, and what marks them: `HOME=…/<id>/home` stands in the environment of each
    run/     the guest's files and variables of this start, for the account alone
    log      what `env logs` shows

Whatever makes or removes the folder does it under a name with a dot (`.<id>.new`, `.<id>.gone`) and renames, so that a
connection that is lost half-way never leaves half an environment. Scripts come on stdin, as their words could be read
by everybody on the machine; a pipe cannot, as its stdin is the program's. They use what every Linux has: sh, grep,
find, and the usual small programs; busybox will do.

SSH hands a command to the account's login shell as text. So a pipe's words are quoted here, with `shlex`, for any
shell that reads single quotes as POSIX does: the one place of the house where words become a line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from backends.compute.contract import WorkloadSpec

MARK = "ashore-pipe"
"""A pipe's first own line on stderr: `ashore-pipe PID START`, `ashore-pipe gone` or `ashore-pipe stopped`."""
ANSWER = "ashore-answer"
"""A script's first own line; what comes before it was said by the account's start-up files."""
GONE = 3
ALIVE = 4
IN_THE_WAY = 5
"""Exit statuses of the scripts."""
SERVERS = "/usr/sbin/sshd /usr/local/sbin/sshd /usr/bin/sshd"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_COMMON = """\
umask 077
cd || exit 1
# started FIELDS…: of /proc/PID/stat after the name; when the process began, in ticks since the machine did
started() { shift 19; echo "$1"; }
nap() { sleep 0.1 2>/dev/null || sleep 1; }
read -r boot < /proc/sys/kernel/random/boot_id || exit 1
state_of() {
    [ -d "$1" ] && [ ! -h "$1" ] && [ -f "$1/label" ] || { echo gone; return; }
    was= at=
    [ ! -f "$1/state" ] || read -r was at < "$1/state"
    case "$was $at" in
    "running $boot") echo running ;;
    running*) echo rebooted ;;
    *) echo stopped ;;
    esac
}
"""

_SETTLE = """\
set_state() { echo "$2 $boot" > "$1/state.new" && mv -f "$1/state.new" "$1/state"; }
# No link is followed, and no other file system is entered: somebody may have mounted one in their home.
remove() {
    [ -e "$1" ] || [ -h "$1" ] || return 0
    find "$1" -xdev -type d ! -perm -700 -exec chmod u+rwx {} \\; 2>/dev/null
    find "$1" -xdev -depth -delete
}
"""

_PROBE = """\
mkdir -p "$base" && cd "$base" || exit 1
echo "uid $(id -u)"
for sshd in @SERVERS@; do [ ! -x "$sshd" ] || break; done
[ ! -x "$sshd" ] || echo "sshd $("$sshd" -V 2>&1 </dev/null | grep -o 'OpenSSH_[^ ,]*' | head -n 1)"
echo "system $(uname -sr)"
"""

_CREATE = """\
mkdir -p "$base" && cd "$base" || exit 1
[ "$(state_of "$id")" = gone ] || exit 0
if [ -e "$id" ] || [ -h "$id" ]; then exit @IN_THE_WAY@; fi
new=.$id.new
remove "$new" && mkdir "$new" "$new/home" "$new/run" || exit 1
[ ! -d /etc/skel ] || cp -R /etc/skel/. "$new/home" 2>/dev/null
printf '%s\\n' "$label" > "$new/label" && set_state "$new" stopped && : > "$new/log" && mv "$new" "$id"
"""

_START = """\
cd "$base" 2>/dev/null || exit @GONE@
state=$(state_of "$id")
[ "$state" != gone ] || exit @GONE@
mkdir -p "$id/run" && chmod 700 "$id/run" || exit 1
@FILES@
[ "$state" = running ] || echo "$(date '+%Y-%m-%d %H:%M:%S') $name is up" >> "$id/log"
set_state "$id" running
"""

_STOP = """\
cd "$base" 2>/dev/null || exit 0
state=$(state_of "$id")
[ "$state" = gone ] || set_state "$id" stopped || exit 1
[ "$state" != running ] || echo "$(date '+%Y-%m-%d %H:%M:%S') it was stopped" >> "$id/log"
mark=HOME=$(pwd -P)/$id/home
marked() { grep -lsF -e "$mark" /proc/[0-9]*/environ; }
send() { for one in $(marked); do one=${one%/environ}; kill -s "$1" "${one#/proc/}" 2>/dev/null; done; }
now() { date +%s; }
if [ "$grace" -gt 0 ]; then
    send TERM
    end=$(($(now) + grace))
    while [ -n "$(marked)" ] && [ "$(now)" -lt $end ]; do nap; done
fi
end=$(($(now) + 10))
while [ -n "$(marked)" ]; do
    [ "$(now)" -lt $end ] || exit @ALIVE@
    send KILL
    nap
done
"""

_DELETE = """\
cd "$base" 2>/dev/null || exit 0
remove ".$id.gone" && remove ".$id.new" || exit 1
if [ -e "$id" ] || [ -h "$id" ]; then mv "$id" ".$id.gone" && remove ".$id.gone"; fi
"""

_INSPECT = """\
cd "$base" 2>/dev/null || { echo "state gone"; exit 0; }
echo "state $(state_of "$id")"
"""

_FOUND = """\
cd "$base" 2>/dev/null || exit 0
for id in *; do
    state=$(state_of "$id")
    [ "$state" = gone ] || echo "found $id $state"
done
"""

_LOGS = """\
cd "$base" 2>/dev/null && [ -f "$id/log" ] || exit @GONE@
tail -n "$lines" "$id/log"
"""

# Ends what is left of a pipe. Its program leads a process group: sshd gives each command a session.
_REAP = """\
lives() {
    read -r stat 2>/dev/null < "/proc/$pid/stat" || return 1
    case ${stat##*) } in Z*) return 1 ;; esac
    [ "$(started ${stat##*) })" = "$start" ]
}
n=0
while lives && [ $n -lt 20 ]; do nap; n=$((n + 1)); done
n=0
while lives && [ $n -lt 50 ]; do
    kill -KILL "-$pid" 2>/dev/null || kill -KILL "$pid" 2>/dev/null
    nap
    n=$((n + 1))
done
"""

_PIPE = """\
base=$1 id=$2 count=$3
shift 3
cd "$base" 2>/dev/null || { echo "@MARK@ gone" >&2; exit 0; }
case $(state_of "$id") in
running) ;;
gone) echo "@MARK@ gone" >&2; exit 0 ;;
*) echo "@MARK@ stopped" >&2; exit 0 ;;
esac
cd "$id/home" || { echo "@MARK@ gone" >&2; exit 0; }
umask 022
unset SSH_CLIENT SSH_CONNECTION SSH_TTY MAIL
. ../run/variables
while [ "$count" -gt 0 ]; do
    export "$1"
    shift
    count=$((count - 1))
done
HOME=$(pwd -P)
export HOME
read -r stat < /proc/$$/stat
echo "@MARK@ $$ $(started ${stat##*) })" >&2
exec "$@"
"""


_OUTPUT = """\
base=$1 id=$2
cd "$base" 2>/dev/null || { echo "@MARK@ away" >&2; exit 0; }
cd "$id/home" 2>/dev/null || { echo "@MARK@ gone" >&2; exit 0; }
[ ! -h output ] || { echo "@MARK@ link" >&2; exit 0; }
[ -d output ] || { echo "@MARK@ gone" >&2; exit 0; }
command -v tar >/dev/null || { echo "@MARK@ missing" >&2; exit 0; }
echo "@MARK@ reading" >&2
exec tar -cf - output
"""


def probe(base: str) -> bytes:
    """Prints `uid N`, `system WORDS`, and `sshd VERSION` where there is one to be run."""
    return _script(_COMMON + _PROBE.replace("@SERVERS@", SERVERS), base=base)


def create(base: str, spec: WorkloadSpec) -> bytes:
    """No-op if it is there; IN_THE_WAY: something else has its name."""
    label = "\n".join(f"{key} {value}" for key, value in labels(spec).items())
    return _script(_COMMON + _SETTLE + _CREATE, base=base, id=spec.id, label=label)


def start(base: str, spec: WorkloadSpec) -> bytes:
    """Files are there completely or not at all: each is written beside its place and renamed. GONE."""
    lines = []
    for name, content in {**spec.guest_files, "variables": _exports(spec.variables)}.items():
        target = f'"$id"/run/{shlex.quote(name)}'
        lines.append(f": > {target}.new || exit 1")
        lines += [f"printf '%b' '{piece}' >> {target}.new || exit 1" for piece in _octal(content)]
        lines.append(f"mv -f {target}.new {target} || exit 1")
    script = _COMMON + _SETTLE + _START.replace("@FILES@", "\n".join(lines))
    return _script(script, base=base, id=spec.id, name=spec.name)


def stop(base: str, environment_id: str, *, grace: int) -> bytes:
    """`grace` in seconds. Also ends programs of a folder that is gone. ALIVE: some cannot be ended."""
    return _script(_COMMON + _SETTLE + _STOP, base=base, id=environment_id, grace=str(grace))


def delete(base: str, environment_id: str) -> bytes:
    """Fails if something is left; no-op where nothing is."""
    return _script(_COMMON + _SETTLE + _DELETE, base=base, id=environment_id)


def inspect(base: str, environment_id: str) -> bytes:
    """Prints `state running`, `rebooted`, `stopped` or `gone`."""
    return _script(_COMMON + _INSPECT, base=base, id=environment_id)


def found(base: str) -> bytes:
    """Prints `found ID STATE` for each."""
    return _script(_COMMON + _FOUND, base=base)


def logs(base: str, environment_id: str, *, lines: int) -> bytes:
    """GONE if there is no log."""
    return _script(_COMMON + _LOGS, base=base, id=environment_id, lines=str(lines))


def output(base: str, environment_id: str) -> str:
    """A command line that writes a tar archive of the folder `output` of the home, after a line with MARK on stderr.

    The mark's word is `gone` where there is none. No link is followed, the folder itself being none.
    """
    script = _filled(_COMMON + _OUTPUT)
    return f"exec /bin/sh -c {shlex.join([script, 'ashore', base, environment_id])}"


def reap(pid: int, start: int) -> bytes:
    """Ends the process group `pid` whose leader began at `start`, if it does not end by itself soon."""
    return _script(_COMMON + _REAP, pid=str(pid), start=str(start))


def pipe(base: str, environment_id: str, argv: Sequence[str], variables: Mapping[str, str]) -> str:
    """A command line that runs `argv` in the home, after a line with MARK on stderr."""
    assignments = [f"{name}={value}" for name, value in variables.items() if _VARIABLE.fullmatch(name)]
    script = _filled(_COMMON + _PIPE)
    words = [script, "ashore", base, environment_id, str(len(assignments)), *assignments, *argv]
    return f"exec /bin/sh -c {shlex.join(words)}"


def labels(spec: WorkloadSpec) -> dict[str, str]:
    """What people read in the folder."""
    return {"ashore": spec.id, "name": spec.name, "owner": spec.owner, "workspace": spec.workspace}


def _script(body: str, **values: str) -> bytes:
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return f"echo {ANSWER}\n{assignments}{_filled(body)}".encode()


def _filled(script: str) -> str:
    known = {"MARK": MARK, "GONE": GONE, "ALIVE": ALIVE, "IN_THE_WAY": IN_THE_WAY}
    for name, value in known.items():
        script = script.replace(f"@{name}@", str(value))
    return script


def _exports(variables: Mapping[str, str]) -> bytes:
    fine = {name: value for name, value in variables.items() if _VARIABLE.fullmatch(name)}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in fine.items()).encode()


def _octal(content: bytes) -> Sequence[str]:
    """`content` for printf's %b, in pieces that any shell takes."""
    return [
        "".join(f"\\0{byte:03o}" for byte in content[begin : begin + 1024]) for begin in range(0, len(content), 1024)
    ]
