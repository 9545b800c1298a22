"""What every screen is given: the use cases, who asks, the language, and the gateway's address."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from backends.services import Address as Address
from backends.services import Services
from storage.access import Caller
from tui.texts import Texts


@dataclass(frozen=True)
class Desk:
    """One person's access to the house."""

    services: Services
    caller: Caller
    texts: Texts
    address: Address

    def ssh_command(self, environment: str = "") -> str:
        """The line that opens a shell in `environment`, or the menu."""
        return f"ssh {self._port_option('-p')}{self._login(environment)}@{self.address.host}"

    def sftp_command(self, path: str = "/") -> str:
        """The line that opens `path` of the data tree."""
        target = f"{self._login()}@{self._bracketed()}:{path}"
        return f"sftp {self._port_option('-P')}{shlex.quote(target)}"

    def lftp_command(self, path: str = "/") -> str:
        """The same with lftp, which mirrors directories and resumes."""
        where = shlex.quote(f"cd {shlex.quote(path)}")
        return f"lftp -e {where} sftp://{self._login()}@{self._bracketed()}:{self.address.port}"

    def upload_command(self, directory: str, path: str) -> str:
        """The line that sends a local directory to `path`, and goes on where it was cut off."""
        script = shlex.quote(f"mirror -c -R {shlex.quote(directory)} {shlex.quote(path)}; quit")
        return f"lftp -e {script} sftp://{self._login()}@{self._bracketed()}:{self.address.port}"

    def jump_command(self, environment: str) -> str:
        """The line for editors and scripts: through the gateway to the environment."""
        port = "" if self.address.port == 22 else f":{self.address.port}"
        return f"ssh -J {self._login()}@{self._bracketed()}{port} {environment}"

    def gateway_command(self, command: str) -> str:
        """The line that runs a gateway command."""
        return f"{self.ssh_command()} {command}"

    def _login(self, environment: str = "") -> str:
        return f"{self.caller.name}+{environment}" if environment else self.caller.name

    def _port_option(self, option: str) -> str:
        return "" if self.address.port == 22 else f"{option} {self.address.port} "

    def _bracketed(self) -> str:
        return f"[{self.address.host}]" if ":" in self.address.host else self.address.host
