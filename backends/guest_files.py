"""What a guest needs beside its programs: configuration, keys and the script that starts it. Pure functions.

The files appear in `/opt/ashore/run/` inside an environment; the script's path with /bin/sh is what a compute runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from backends.guest_tree import MOUNT
from storage.errors import BadInput
from storage.names import printable
from storage.records import Environment

RUN = "/opt/ashore/run"
"""Where the files appear inside."""
LOGIN_USER = "developer"
ENTER = ("/bin/sh", f"{RUN}/enter")
"""What a compute runs, as root if there is one, for each connection."""
ENTER_ACCOUNT = ("/bin/sh", "../run/enter")
"""The same where environments are folders of an account; the compute starts it in the environment's home."""

# Clients are ours alone, keys are pinned on both sides, and who may do what was decided at the gateway. What is set
# here bounds what a mistake at the gateway could do. No PermitOpen: it would refuse every Unix socket as well.
_PATHS = f"""\
HostKey {RUN}/ssh_host_ed25519_key
AuthorizedKeysFile {RUN}/authorized_keys
Subsystem sftp internal-sftp
"""
_CONFIG = """\
HostKeyAlgorithms ssh-ed25519
KexAlgorithms curve25519-sha256
Ciphers aes128-gcm@openssh.com
StrictModes no
UsePAM no
UseDNS no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment no
PermitUserRC no
AcceptEnv LANG LANGUAGE LC_* TERM COLORTERM NO_COLOR TZ
AllowAgentForwarding yes
AllowTcpForwarding local
AllowStreamLocalForwarding local
PermitListen none
StreamLocalBindUnlink yes
PermitTunnel no
X11Forwarding no
PrintMotd no
PrintLastLog no
Banner none
Compression no
MaxSessions 1000
ClientAliveInterval 0
TCPKeepAlive no
LoginGraceTime 20
PidFile none
LogLevel INFO
"""

_ADD = """\
# add NAME VALUE: quoted as sshd_config wants it
add() {
    rest=$2 quoted=
    while :; do
        case $rest in
        *[\\"\\\\]*)
            head=${rest%%[\\"\\\\]*}
            tail=${rest#"$head"}
            rest=${tail#?}
            quoted="$quoted$head\\\\${tail%"$rest"}" ;;
        *) break ;;
        esac
    done
    set_env="$set_env \\"$1=$quoted$rest\\""
}
"""

_IMAGE_VARIABLES = """\
while IFS= read -r line; do
    name=${line%%=*}
    case $name in
    ''|[0-9]*|*[!A-Za-z0-9_]*|HOME|HOSTNAME|PWD|OLDPWD|SHLVL|_|USER|LOGNAME|SHELL|MAIL|TERM|LD_*|ASHORE_*) ;;
    *) add "$name" "${line#*=}" ;;
    esac
done <<END
$image_env
END
"""

_ENTER = """\
# Starts the guest for one connection. It runs as root where the environment has a root.
guest=@GUEST@ run=@RUN@ user=@USER@
image_env=$(env 2>/dev/null)
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022

# by_name NAME: sets word uid gid info home shell
by_name() {
    while IFS=: read -r name word uid gid info home shell; do
        [ "$name" = "$1" ] && return 0
    done < /etc/passwd
    return 1
}

# The compute has made the account, and says in a file whose it is. We log in under one name everywhere: where the
# account has another, ours becomes a second name of it.
as_root() {
    mkdir -p /run/sshd && chmod 755 /run/sshd
    chmod 711 "$run" && chmod 644 "$run/authorized_keys"
    by_name sshd || echo "sshd:*:74:74:sshd:/run/sshd:/bin/false" >> /etc/passwd
    login=$user
    [ -e "$run/user" ] && { read -r login < "$run/user" || :; }
    [ "$login" = "$user" ] || by_name "$user" || ! by_name "$login" ||
        echo "$user:*:$uid:$gid:$info:$home:$shell" >> /etc/passwd
}

@ADD@
while read -r key real rest; do
    [ "$key" = Uid: ] && break
done < /proc/self/status
login=
if [ "$real" = 0 ]; then
    as_root >/dev/null
fi
set_env=
[ -z "$login" ] || [ "$login" = "$user" ] || { add USER "$login"; add LOGNAME "$login"; }
@VARIABLES@
@IMAGE_VARIABLES@
set -- -i -e -f "$run/sshd_config"
[ -n "$set_env" ] && set -- "$@" -o "SetEnv=$set_env"
if [ -e "$guest/sshd-session" ]; then
    # These programs are started by path, and have our loader's path written into them.
    set -- "$@" -o "SshdSessionPath=$guest/sshd-session"
    [ -e "$guest/sshd-auth" ] && set -- "$@" -o "SshdAuthPath=$guest/sshd-auth"
    LD_LIBRARY_PATH=$guest/lib
    export LD_LIBRARY_PATH
fi
exec "$guest/ld.so" --library-path "$guest/lib" "$guest/sshd" "$@"
"""


# For an account of an existing machine: its own server, run as that account, which may log in only itself. The server
# enters the account's home by itself, so SFTP is told where to begin, and commands by `at_home`.
_ENTER_ACCOUNT = """\
# Starts the guest for one connection, in the environment's home.
home=$(pwd -P) && cd "${0%/*}" && run=$(pwd -P) || exit 1
unset SSH_CLIENT SSH_CONNECTION SSH_TTY MAIL XDG_RUNTIME_DIR XDG_SESSION_ID DBUS_SESSION_BUS_ADDRESS
image_env=$(env 2>/dev/null)
@ADD@
set_env=
# Twice: of the same name the first counts, in older servers the last.
add HOME "$home"
@VARIABLES@
@IMAGE_VARIABLES@
add HOME "$home"
for sshd in /usr/sbin/sshd /usr/local/sbin/sshd /usr/bin/sshd; do [ ! -x "$sshd" ] || break; done
exec "$sshd" -i -e -f "$run/sshd_config" -o "HostKey=$run/ssh_host_ed25519_key" \\
    -o "AuthorizedKeysFile=$run/authorized_keys" -o "Subsystem=sftp internal-sftp -d $home" -o "SetEnv=$set_env"
"""


def guest_files(environment: Environment, host_key: bytes, client_public_key: bytes) -> dict[str, bytes]:
    """File name → content for `WorkloadSpec.guest_files`. The keys are in OpenSSH's own formats.

    BadInput: a variable that no line can hold.
    """
    script = _ENTER.replace("@GUEST@", MOUNT).replace("@RUN@", RUN).replace("@USER@", LOGIN_USER)
    return _files(environment, host_key, client_public_key, config=_PATHS + _CONFIG, script=script)


def account_files(environment: Environment, host_key: bytes, client_public_key: bytes) -> dict[str, bytes]:
    """The same for a compute whose environments are folders of an account (`contract.OnAccount`)."""
    return _files(environment, host_key, client_public_key, config=_CONFIG, script=_ENTER_ACCOUNT)


def at_home(command: str | None) -> str:
    """What such an account's shell is given so that `command` (None: a login shell) begins in the environment's home.

    The server starts it in the account's. `cd` alone goes to $HOME in every shell. Not by ForceCommand: a forced
    command gets no signals.
    """
    return f"cd; {command}" if command is not None else 'cd; exec "$SHELL" -l'


def _files(
    environment: Environment, host_key: bytes, client_public_key: bytes, *, config: str, script: str
) -> dict[str, bytes]:
    return {
        "sshd_config": config.encode(),
        "ssh_host_ed25519_key": host_key,
        "authorized_keys": client_public_key,
        "enter": _script(script, environment.variables).encode(),
    }


def _script(script: str, variables: Mapping[str, object]) -> str:
    lines = []
    for name, value in sorted((name, str(value)) for name, value in variables.items()):
        if any(mark in value for mark in "\n\r\0"):
            raise BadInput(f"the variable {printable(name, limit=60)} must not hold a line break")
        lines.append(f"add {name} {shlex.quote(value)}")
    script = script.replace("@ADD@\n", _ADD).replace("@IMAGE_VARIABLES@\n", _IMAGE_VARIABLES)
    return script.replace("@VARIABLES@", "\n".join(lines))
