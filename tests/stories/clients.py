"""Real programs from outside: a running `ashore serve`, its people, and terminals to drive `ssh` in.

Nothing here imports Ashore. Everything that is started is ended by its own process id.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Arguments = Sequence[str | Path]
BIN = Path(sys.executable).parent
SECONDS = 120.0


def run(
    arguments: Arguments,
    *,
    input: bytes = b"",
    timeout: float = SECONDS,
    check: bool = True,
    cwd: Path | None = None,
    stdout: Any = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """The finished program. With `check`, a failure shows what it wrote."""
    done = subprocess.run(
        [str(a) for a in arguments], input=input, timeout=timeout, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE,
        check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        shown = shlex.join(str(a) for a in arguments)
        raise AssertionError(
            f"exit {done.returncode} from: {shown}\n"
            f"stdout: {(done.stdout or b'')[-2000:]!r}\nstderr: {done.stderr[-2000:]!r}"
        )
    return done


def eventually(what: Callable[[], object], *, seconds: float = 60.0, pause: float = 0.2) -> Any:
    """The first true value of `what`; its last value in the failure otherwise."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(pause)
    return value


@dataclass
class Gateway:
    """A served data directory, seen from outside."""

    data: Path
    home: Path
    """Keys, configurations and known hosts of the people; not readable for anybody else."""
    port: int = 0
    settings: str = ""
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = self.home / "gateway.log"

    # ---- the operator ----------------------------------------------------------------------------------------
    def operate(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """`ashore …` on the machine of the gateway."""
        return run([sys.executable, "-m", "gateway", *arguments, "--data", self.data], check=check)

    def start(self, *, timeout: float = SECONDS) -> None:
        """Serve, and return when it takes connections. After a stop it serves on the same port."""
        arguments = [sys.executable, "-m", "gateway", "serve", "--data", str(self.data), "--port", str(self.port)]
        if self.settings:
            config = self.home / "ashore.toml"
            config.write_text(self.settings)
            arguments += ["--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        line = self._first_line(timeout)
        ready = re.fullmatch(r"ready ssh \S+:(\d+)\n", line)
        assert ready, f"instead of the ready line: {line!r}\n{self.log_tail()}"
        self.port = int(ready[1])

    def _first_line(self, seconds: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline().decode() if ready else ""

    def stop(self, *, how: int = signal.SIGTERM) -> int:
        """End it by its own id; its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(how)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the gateway did not stop:\n{self.log_tail()}") from None
        finally:
            assert process.stdout is not None
            process.stdout.close()

    def log_tail(self, size: int = 6000) -> str:
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def memory(self) -> int:
        """Resident bytes of the gateway process."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    # ---- people ----------------------------------------------------------------------------------------------
    def add_user(self, name: str, *, admin: bool = False) -> None:
        """A person with a key of their own and an `ssh -F` file."""
        key = self.make_key(name)
        self.operate("user", "add", name, "--key", f"{key}.pub", *(["--admin"] if admin else []))

    def make_key(self, name: str) -> Path:
        key = self.home / name
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key])
        return key

    def config(self, person: str) -> Path:
        """The `-F` file of a person: host `gw` is the gateway."""
        path = self.home / f"{person}.config"
        text = (
            f"Host gw\n  HostName 127.0.0.1\n  Port {self.port}\n  User {person}\n"
            f"Host *\n  IdentityFile {self.home / person}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.home / person}.known\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking accept-new\n  HashKnownHosts no\n  BatchMode yes\n  ConnectTimeout 30\n"
            "  ControlPath none\n  LogLevel ERROR\n"
        )
        # Never rewritten while a program that was started a moment ago reads it.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path

    def client(self, login: str, *, program: str = "ssh", options: Sequence[str] = ()) -> list[str]:
        """`ssh -F … login@gw`, without the host for programs that take it in a path."""
        base = [program, "-F", str(self.config(login.partition("+")[0])), *options]
        return [*base, f"{login}@gw"] if program == "ssh" else base

    def ssh(
        self,
        login: str,
        *command: str,
        options: Sequence[str] = (),
        input: bytes = b"",
        timeout: float = SECONDS,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """`ssh login@gw command`, without a terminal."""
        return run([*self.client(login, options=options), *command], input=input, timeout=timeout, check=check)

    def json(self, login: str, *command: str) -> Any:
        """The parsed answer of a gateway command."""
        return json.loads(self.ssh(login, *command, "--json").stdout)

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """Events of the trail, newest first, with these values; the newest 1000 are looked at."""
        rows = self.json("carol", "audit", "search", "--limit", "1000")
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


@dataclass(frozen=True)
class Environment:
    """A running environment of alice."""

    gateway: Gateway
    name: str
    compute: str

    @property
    def login(self) -> str:
        return f"alice+{self.name}"

    def ssh(self, *command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return self.gateway.ssh(self.login, *command, **options)

    def processes(self) -> str:
        """The command lines of everything that runs in it."""
        return self.ssh("ps -eo args").stdout.decode(errors="replace")


_WHO_ARE_YOU, _A_VT220 = b"\x1b[c", b"\x1b[?62;22c"
"""DA1 and its answer: every terminal gives one, and who does not is waited for."""


class Terminal:
    """A program on a terminal of its own, driven like a person would."""

    def __init__(self, arguments: Arguments, *, columns: int = 100, rows: int = 30) -> None:
        self._master, slave = os.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        try:
            # setsid makes this the controlling terminal, so that resizes reach the program as SIGWINCH.
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *(str(a) for a in arguments)],
                stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm-256color"},
            )  # fmt: skip
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str | bytes) -> None:
        os.write(self._master, text.encode() if isinstance(text, str) else text)

    def wait_for_prompt(self) -> None:
        """Type only what a shell is there to read: what comes before it may be lost."""
        self.expect(r"[$#] ")

    def expect(self, pattern: str, *, seconds: float = 30.0) -> re.Match[bytes]:
        """Read until `pattern` is in what came since the last match, and forget what came before its end."""
        expression = re.compile(pattern.encode(), re.DOTALL)
        deadline = time.monotonic() + seconds
        while not (match := expression.search(self.seen)):
            assert self._read(deadline), f"no {pattern!r} in {self.seen[-3000:]!r}"
        self.seen = self.seen[match.end() :]
        return match

    def wait(self, *, seconds: float = 30.0) -> int:
        """The exit status, with everything read."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def kill(self) -> None:
        """As if the laptop's battery had died."""
        self.process.kill()
        self.process.wait()

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:
            return False
        self.seen += piece
        if _WHO_ARE_YOU in piece:
            self.send(_A_VT220)
        return bool(piece)


class Tmux:
    """A person in front of tmux: what the screen shows, and keys."""

    def __init__(self, directory: Path, *, columns: int = 110, rows: int = 36) -> None:
        self._base = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        run([*self._base, "new-session", "-d", "-x", str(columns), "-y", str(rows), "env PS1='local> ' sh"])
        self.wait_for(r"local>")

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        run([*self._base, "kill-server"], check=False)

    @property
    def screen(self) -> str:
        return run([*self._base, "capture-pane", "-p"]).stdout.decode()

    @property
    def in_alternate_screen(self) -> bool:
        return run([*self._base, "display-message", "-p", "#{alternate_on}"]).stdout.strip() == b"1"

    @property
    def reports_mouse(self) -> bool:
        return run([*self._base, "display-message", "-p", "#{mouse_any_flag}"]).stdout.strip() == b"1"

    def type(self, text: str) -> None:
        run([*self._base, "send-keys", "-l", text])

    def press(self, *keys: str) -> None:
        run([*self._base, "send-keys", *keys])

    def resize(self, columns: int, rows: int) -> None:
        run([*self._base, "resize-window", "-x", str(columns), "-y", str(rows)])

    def wait_for(self, pattern: str, *, seconds: float = 60.0) -> str:
        """The screen as soon as `pattern` is on it."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + seconds
        while not expression.search(screen := self.screen):
            assert time.monotonic() < deadline, f"no {pattern!r} on this screen:\n{screen}"
            time.sleep(0.1)
        return screen
