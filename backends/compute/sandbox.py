"""What a sandbox looks like from inside: bubblewrap's options and the few files of its own /etc. Pure functions.

Visible are the system below /usr (read only), a home, and nothing else of this machine: no other process, no network
but an own loopback, no data directory, no other home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.compute.contract import WorkloadSpec, folders_only

USER = "developer"
UID = 1000
HOME = f"/home/{USER}"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
WORK = ("code", "output")
"""Folders of the home that are also at /gemini/code and /gemini/output."""
FOLDERS = ("home", "run", "tmp", "etc")
"""Folders of a sandbox on the host; `guest` comes beside them."""
MAIN = (
    "/bin/sh",
    "-c",
    # TERM is ignored, so that everything else inside may be told to end before this does.
    'trap "" TERM HUP INT; echo "$(date -u +%FT%TZ) $HOSTNAME is up"; echo ready >&3; exec 3>&-; exec sleep infinity',
)
"""The first program inside: says on descriptor 3 that all is in place, and keeps the sandbox alive."""

# What programs below /usr want of /etc. Nothing in here may tell a secret: each is readable by everybody.
_SYSTEM_ETC = (
    "alternatives", "bash.bashrc", "bash_completion.d", "ca-certificates", "debian_version", "emacs", "fonts",
    "inputrc", "java-11-openjdk", "java-17-openjdk", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "lsb-release", "magic", "mime.types", "os-release", "pki/tls/certs", "profile", "profile.d", "protocols",
    "python3", "python3.11", "services", "skel", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "vim",
)  # fmt: skip
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True)
class Layout:
    """Where the parts of one sandbox are when bubblewrap looks: on the host, or on the stage."""

    home: str
    run: str
    tmp: str
    etc: str
    guest: str

    @classmethod
    def below(cls, folder: str, guest: str) -> Layout:
        home, run, tmp, etc = (f"{folder}/{name}" for name in FOLDERS)
        return cls(home, run, tmp, etc, guest)


def options(spec: WorkloadSpec, layout: Layout, hidden: Path) -> Sequence[str]:
    """bubblewrap's options for a sandbox. `hidden` is a folder of the host that must not be seen, wherever it lies."""
    words = [
        "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net",
        "--unshare-cgroup-try", "--new-session", "--uid", str(UID), "--gid", str(UID),
        "--hostname", hostname(spec.name), "--clearenv",
    ]  # fmt: skip
    words += ["--ro-bind", "/usr", "/usr"]
    for name in _TOP:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    if hidden.is_relative_to("/usr"):
        words += ["--tmpfs", str(hidden)]
    words += ["--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--tmpfs", "/run"]
    for folder in ("/etc", "/home", "/opt", "/opt/ashore", "/var"):
        words += ["--perms", "0755", "--dir", folder]
    for name in _SYSTEM_ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in etc_files(spec.name):
        words += ["--ro-bind", f"{layout.etc}/{name}", f"/etc/{name}"]
    words += ["--bind", layout.tmp, "/tmp", "--bind", layout.tmp, "/var/tmp"]
    words += ["--bind", layout.home, HOME, "--bind", layout.home, "/workspace"]
    words += ["--ro-bind", layout.guest, "/opt/ashore/guest", "--ro-bind", layout.run, "/opt/ashore/run"]
    words += ["--perms", "0755", "--dir", "/gemini"]
    for name in WORK:
        words += ["--symlink", f"/workspace/{name}", f"/gemini/{name}"]
    for mount in folders_only(spec.mounts):
        words += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.path]
    words += ["--chdir", HOME, "--remount-ro", "/"]
    for name, value in variables(spec).items():
        words += ["--setenv", name, value]
    return words


def variables(spec: WorkloadSpec) -> Mapping[str, str]:
    """The environment of whatever runs inside."""
    own = {"HOME": HOME, "USER": USER, "LOGNAME": USER, "SHELL": shell(), "HOSTNAME": hostname(spec.name)}
    return {"PATH": PATH} | dict(spec.variables) | own


def etc_files(name: str) -> Mapping[str, str]:
    """File name → content of what is not the host's in /etc; `name` is the environment's."""
    return {
        "passwd": (
            "root:x:0:0:root:/root:/bin/sh\n"
            f"{USER}:x:{UID}:{UID}::{HOME}:{shell()}\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        # No group `tty`: sshd would give terminals to it, which an only user cannot.
        "group": f"root:x:0:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
        "hosts": f"127.0.0.1 localhost {hostname(name)}\n::1 localhost ip6-localhost\n",
        "hostname": f"{hostname(name)}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
        "resolv.conf": "# This environment has a network of its own with nothing but a loopback.\n",
        "shells": "/bin/sh\n/bin/bash\n",
    }


def hostname(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")[:63]


def shell() -> str:
    return "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
