"""What is said to the shell of an environment so that its applications run. Pure functions.

The script comes on the shell's standard input, secrets included, so that no command line holds them, nor a digest of
them, by which short ones can be guessed: only builtins of the shell are given either. Each application
gets a supervisor inside: it belongs to the environment and not to us, so it outlives connections and the gateway.
Only what every image has is used: a POSIX shell, /proc, and `setsid` where it is there.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.application_secrets import sam_line, vnc_password
from backends.settings import ApplicationSettings
from storage.records import ApplicationState

SHELL = "/bin/sh -s"
"""The command that gets the script."""
FOLDER = ".ashore/apps"
"""Below the login user's home: one folder for each application."""
_MARK = "ashore-application"
_MISSING = 127
_STATUS = re.compile("[0-9]{1,3}")

_BEGAN = """\
# began PID: when it began, in ticks of the machine; a number may belong to another process by now
began() {
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    shift 19
    echo "$1"
}
session=
! command -v setsid >/dev/null || session=setsid
"""

_SUPERVISOR = (
    """\
# Keeps one application running; Ashore writes this file anew whenever it starts one. Its folder is the argument.
folder=$1
umask 077
cd "$HOME" || exit 1
"""
    + _BEGAN
    + """\
pause=1
while :; do
    since=$(date +%s)
    [ "$(wc -c < "$folder/log")" -lt 4000000 ] 2>/dev/null || : > "$folder/log"
    echo starting > "$folder/state"
    $session /bin/sh "$folder/start" >> "$folder/log" 2>&1 < /dev/null &
    child=$!
    echo "$child $(began "$child")" > "$folder/child"
    wait "$child"
    echo "ended $?" > "$folder/state"
    [ -z "$session" ] || kill -KILL -- "-$child" 2>/dev/null
    [ $(($(date +%s) - since)) -lt 60 ] || pause=1
    sleep "$pause"
    pause=$((pause < 16 ? pause * 2 : 30))
done
"""
)

_HEAD = (
    """\
umask 077
base=$HOME/@FOLDER@
mkdir -p "$base" && chmod 700 "$HOME/.ashore" "$base" || exit 1
"""
    + _BEGAN
    + """\
# alive FILE: whether the process that it names is still that one; sets pid
alive() {
    { read -r pid begun < "$1"; } 2>/dev/null && [ -n "$begun" ] && [ "$(began "$pid")" = "$begun" ]
}
end() {
    ! alive "$1/supervisor" || kill -KILL "$pid"
    alive "$1/child" || return 0
    kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        alive "$1/child" || return 0
        sleep 0.3
    done
    kill -KILL -- "-$pid" 2>/dev/null || kill -KILL "$pid"
}
# listens HEX: whether something takes connections at this port
listens() {
    for table in /proc/net/tcp /proc/net/tcp6; do
        while read -r _ here _ state _; do
            case "$here $state" in *":$1 0A") return 0 ;; esac
        done < "$table"
    done 2>/dev/null
    return 1
}
report() {
    state= status=
    { read -r state status < "$folder/state"; } 2>/dev/null
    if [ "$state" = starting ] && alive "$folder/child" && listens "$2"; then
        state=running
    fi
    echo "@MARK@ $1 $state $status"
}
"""
)

_END = """\
folder=$base/@NAME@
end "$folder"
rm -rf "$folder"
echo "@MARK@ @NAME@ ending"
"""

_ONE = """\
folder=$base/@NAME@
mkdir -p "$folder" || exit 1
had=
{ read -r had < "$folder/digest"; } 2>/dev/null
if ! alive "$folder/supervisor" || [ "$had" != @DIGEST@ ]; then
    end "$folder"
@FILES@
    echo starting > "$folder/state"
    $session /bin/sh "$folder/supervisor.sh" "$folder" < /dev/null > /dev/null 2>&1 &
    echo "$! $(began "$!")" > "$folder/supervisor"
    echo @DIGEST@ > "$folder/digest"
fi
report @NAME@ @PORT@
"""


@dataclass(frozen=True)
class Wanted:
    """One application as it shall run; the secret is open here."""

    name: str
    settings: ApplicationSettings
    secret: str


@dataclass(frozen=True)
class Seen:
    """What an environment says of one application."""

    state: ApplicationState
    exit_status: int | None = None
    """Of a program that ended."""


def script(wanted: Sequence[Wanted], unwanted: Sequence[str] = ()) -> str:
    """A program for `SHELL` that ends what is unwanted, starts what does not run as it should, and reports on each."""
    head = _HEAD.replace("@FOLDER@", FOLDER).replace("@MARK@", _MARK)
    ends = [_END.replace("@NAME@", name).replace("@MARK@", _MARK) for name in unwanted]
    return head + "".join(ends) + "".join(_part(one) for one in wanted)


def parse(report: str) -> Mapping[str, Seen]:
    """What the script printed, by names; lines of others (a talkative profile) are passed over."""
    found: dict[str, Seen] = {}
    for line in report.splitlines():
        words = line.split()
        if len(words) < 3 or words[0] != _MARK:
            continue
        status = int(words[3]) if len(words) > 3 and _STATUS.fullmatch(words[3]) else None
        found[words[1]] = Seen(_state(words[2], status), status)
    return found


def _state(word: str, status: int | None) -> ApplicationState:
    if word == "ended":
        return ApplicationState.MISSING if status == _MISSING else ApplicationState.FAILED
    known = {"running": ApplicationState.RUNNING, "ending": ApplicationState.ENDING}
    return known.get(word, ApplicationState.STARTING)


def _part(one: Wanted) -> str:
    start = _start(one)
    files = {"supervisor.sh": _SUPERVISOR, "start": start}
    lines = [f'    printf %s {shlex.quote(text)} > "$folder/{name}"' for name, text in files.items()]
    lines += ['    : >> "$folder/log"', f'    printf %s {shlex.quote(one.secret)} > "$folder/secret"']
    if one.settings.secret == "password":
        octal = "".join(f"\\{byte:03o}" for byte in vnc_password(one.secret))
        lines.append(f"    printf '{octal}' > \"$folder/vncpasswd\"")
        sam = shlex.quote(sam_line(one.settings.user, one.secret))
        lines.append(f"    printf '%s\\n' {sam} > \"$folder/sam\"")
    text = "\n".join(lines)
    return (
        _ONE.replace("@NAME@", one.name)
        .replace("@DIGEST@", hashlib.sha256(text.encode()).hexdigest())
        .replace("@PORT@", f"{one.settings.port:04X}")
        .replace("@FILES@", text)
    )


def _start(one: Wanted) -> str:
    """The script that becomes the program. It reads the secret from its file, so it holds none itself."""
    settings = one.settings
    # `{folder}` is known inside only: each word is quoted but for those places.
    words = [
        '"$folder"'.join(shlex.quote(part) if part else "" for part in word.split("{folder}")) or "''"
        for word in (word.replace("{port}", str(settings.port)) for word in settings.argv)
    ]
    lines = [
        f"folder=$HOME/{FOLDER}/{one.name}",
        "PATH=$PATH:$HOME/.local/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "export PATH",
    ]
    if settings.variable and settings.secret != "none":
        lines += [f'{settings.variable}=$(cat "$folder/secret")', f"export {settings.variable}"]
    program = words[0]
    lines += [f"command -v {program} >/dev/null || exit {_MISSING}", f"exec {' '.join(words)}"]
    return "\n".join(lines) + "\n"
