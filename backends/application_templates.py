"""Which applications there are: those that are built in, and those of the settings. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.settings import ApplicationSettings
from storage.names import printable

# Classic notebooks know the second names only; each warns of the others' and goes on.
_JUPYTER = """\
options="--no-browser --ip=127.0.0.1 --port={port}"
if command -v jupyter-lab >/dev/null; then
    exec jupyter-lab $options --ServerApp.port_retries=0
elif command -v jupyter-notebook >/dev/null; then
    exec jupyter-notebook $options --NotebookApp.port_retries=0
fi
exit 127
"""
_DISPLAY = """\
for number in 1 2 3 4 5 6 7 8 9; do
    [ -e "/tmp/.X11-unix/X$number" ] && [ -e "/tmp/.X$number-lock" ] &&
        kill -0 "$(cat "/tmp/.X$number-lock")" 2>/dev/null || break
done
export DISPLAY=":$number"
"""
"""The first display that is free."""
_DESKTOP = """\
server=$!
trap 'kill "$server" 2>/dev/null' EXIT TERM INT HUP
sleep 2
for desktop in startxfce4 startlxqt mate-session startlxde openbox-session icewm-session xterm; do
    if command -v "$desktop" >/dev/null; then
        "$desktop" &
        break
    fi
done
"""
"""On the display that was begun just now: the first desktop that is there; else a terminal, or an empty screen."""
_VNC = f"""\
command -v Xtigervnc >/dev/null || exit 127
{_DISPLAY}
Xtigervnc "$DISPLAY" -localhost=1 -rfbport {{port}} -SecurityTypes VncAuth -PasswordFile '{{folder}}/vncpasswd' \\
    -AlwaysShared -geometry 1600x900 -depth 24 -desktop "$(hostname)" &
{_DESKTOP}
wait "$server"
"""
# xrdp lets people in through PAM, for which it wants root. FreeRDP's server shows a display of its own user, and proves
# the password itself (NLA), from the hash in the file. It ends when its display does.
_RDP = f"""\
command -v freerdp-shadow-cli >/dev/null && command -v Xvfb >/dev/null || exit 127
{_DISPLAY}
Xvfb "$DISPLAY" -screen 0 1600x900x24 -nolisten tcp &
{_DESKTOP}
freerdp-shadow-cli /bind-address:127.0.0.1 /port:{{port}} /sec:nla '/sam-file:{{folder}}/sam'
"""

BUILT_IN: Mapping[str, ApplicationSettings] = {
    "jupyter": ApplicationSettings(
        title="Jupyter",
        argv=("/bin/sh", "-c", _JUPYTER),
        port=8888,
        secret="token",
        variable="JUPYTER_TOKEN",
        address="http://127.0.0.1:{port}/?token={secret}",
        advice="open the address in a browser while the ssh line runs",
        install="pip install jupyterlab",
    ),
    "vnc": ApplicationSettings(
        title="Desktop (VNC)",
        argv=("/bin/sh", "-c", _VNC),
        port=5900,
        secret="password",
        address="vnc://127.0.0.1:{port}",
        advice="any VNC viewer opens the address while the ssh line runs, and asks for the password",
        install="apt install tigervnc-standalone-server xfce4 dbus-x11",
    ),
    "rdp": ApplicationSettings(
        title="Desktop (RDP)",
        argv=("/bin/sh", "-c", _RDP),
        port=3389,
        secret="password",
        user="developer",
        address="127.0.0.1:{port}",
        advice="any RDP client (mstsc, Remmina, xfreerdp) opens the address while the ssh line runs, and asks for user"
        " and password",
        install="apt install freerdp2-shadow-x11 xvfb xfce4 dbus-x11 (Debian 12)",
    ),
}


def templates_of(settings: Mapping[str, ApplicationSettings]) -> Mapping[str, ApplicationSettings]:
    """Every application that may be asked for, by name."""
    return {**BUILT_IN, **settings}


def refusals(templates: Mapping[str, ApplicationSettings], names: Sequence[str], *, machine: str) -> Sequence[str]:
    """What speaks against starting these in a new environment; `machine` is its existing machine, if it is on one."""
    if not names:
        return []
    if machine:
        return [f"'{machine}' starts no applications: what listens there, everybody on that machine can reach"]
    found: list[str] = []
    ports: dict[int, str] = {}
    for name in names:
        template = templates.get(name)
        if template is None:
            offered = ", ".join(sorted(templates))
            found.append(f"there is no application '{printable(name, limit=40)}' (offered: {offered})")
        elif template.port in ports:
            other = ports[template.port]
            both = f"the applications '{other}' and '{name}' listen on the same port"
            found.append(both if other != name else f"the application '{name}' was chosen twice")
        else:
            ports[template.port] = name
    return found
