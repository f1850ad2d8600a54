"""Logins as stock's `flwr` keeps them from 1.26 on: `$FLWR_HOME/credentials.yaml`, for its owner only. Who logs in
with one of the two is logged in with both."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trellis_cli.connection import config_file
from trellis_cli.errors import UsageError

_KEYS = {
    "type": "flower.account-auth.{}.authn-type",
    "access": "flower.account-auth.{}.oidc-access-token",
    "refresh": "flower.account-auth.{}.oidc-refresh-token",
}


@dataclass(frozen=True)
class Tokens:
    """`refresh` is "" for a service account, which needs none."""

    access: str
    refresh: str = ""


class CredentialFile:
    """The logins at all SuperLinks, each under the SuperLink's host:port."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.path: Path = config_file(environ).with_name("credentials.yaml")

    def load(self, address: str) -> Tokens | None:
        """UsageError for a file that cannot be read."""
        if not self.path.exists():
            return None
        found = self._read()
        try:
            access, refresh = (
                base64.b64decode(found.get(_KEYS[name].format(address), ""), validate=True).decode()
                for name in ("access", "refresh")
            )
        except (binascii.Error, UnicodeDecodeError) as error:
            raise UsageError(f"The login in {self.path} is damaged; log in again.") from error
        return Tokens(access, refresh) if access and refresh else None

    def save(self, address: str, tokens: Tokens) -> None:
        """The file is replaced as a whole: who reads it meanwhile has the old or the new."""
        values = {"type": "oidc", "access": tokens.access, "refresh": tokens.refresh}
        found = self._read() if self.path.exists() else {}
        found |= {
            _KEYS[name].format(address): base64.b64encode(value.encode()).decode() for name, value in values.items()
        }
        self._write(found)

    def forget(self, address: str) -> bool:
        """Whether there was a login."""
        if not self.path.exists():
            return False
        found = self._read()
        left = {
            key: value for key, value in found.items() if key not in {one.format(address) for one in _KEYS.values()}
        }
        if left != found:
            self._write(left)
        return left != found

    def _read(self) -> dict[str, str]:
        import yaml  # takes its time, and few commands need it

        try:
            found = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path} is no YAML; take it away and log in again.") from error
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def _write(self, values: Mapping[str, str]) -> None:
        import yaml

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".credentials-")  # mode 0600
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    yaml.safe_dump(dict(values), file)
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}.") from error
