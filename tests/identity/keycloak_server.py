"""A Keycloak of its own for a test session: a process with the realm that compose/keycloak has, over TLS."""

from __future__ import annotations

import secrets
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from keycloak import KeycloakAdmin, KeycloakOpenIDConnection
from pki import Authority
from trellis_kit.federation import Role, free_ports
from trellis_testing.environment import clean_environment
from trellis_testing.venvs import cache_folder

VERSION = "26.7.3"
REALM_FILE = Path(__file__).parents[2] / "compose" / "keycloak" / "realm.json"
REALM = "trellis"
PIPELINE = "trellis-pipeline"
USERS = ("admin", "researcher", "viewer")

_START = 450.0
"""Seconds that a start may take: 25 to 70 on two cores that have nothing else to do."""
_LOOK = 0.5
# A server for a few users and some minutes: little memory, and no time for compiling it well.
_JAVA = "-Xms64m -Xmx512m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class Keycloak:
    """`start`, then `stop`; in between it may be stopped and started again, and still has what it had.

    Its certificate names localhost and 127.0.0.1. Browsers are sent to `issuer`, at localhost; `internal_url` is the
    same realm at 127.0.0.1, as a SuperLink would reach it that is on another network than its users.
    """

    def __init__(self, directory: Path) -> None:
        dist = cache_folder() / f"keycloak-{VERSION}"
        if not dist.exists():
            raise FileNotFoundError(f"There is no {dist}; scripts/install-test-tools brings it.")
        self.authority = Authority(directory / "pki", "keycloak-ca")
        pair = self.authority.server("keycloak")
        self.certfile = pair.certfile
        port, management = free_ports(2)
        self.url = f"https://localhost:{port}"
        self.issuer = f"{self.url}/realms/{REALM}"
        self.internal_url = f"https://127.0.0.1:{port}/realms/{REALM}"
        self.passwords = {user: secrets.token_urlsafe(16) for user in USERS}
        self.pipeline_secret = secrets.token_urlsafe(24)
        self._root_password = secrets.token_urlsafe(16)
        self._health = f"http://127.0.0.1:{management}/health/ready"
        home = directory / "keycloak"
        _own_copy(dist, home)
        (home / "data" / "import").mkdir(parents=True)
        shutil.copy(REALM_FILE, home / "data" / "import")
        env = clean_environment(directory / "home")
        env |= {
            "JAVA_OPTS": _JAVA,
            "KC_BOOTSTRAP_ADMIN_USERNAME": "root",
            "KC_BOOTSTRAP_ADMIN_PASSWORD": self._root_password,
            "TRELLIS_PIPELINE_SECRET": self.pipeline_secret,
            **{f"TRELLIS_{user.upper()}_PASSWORD": password for user, password in self.passwords.items()},
        }
        argv = (
            *(str(home / "bin" / "kc.sh"), "start", "--optimized", "--import-realm"),
            *("--hostname", self.url, "--http-host", "127.0.0.1", "--http-enabled=false"),
            *("--https-port", str(port), "--cache=local"),
            *("--https-certificate-file", str(pair.certfile), "--https-certificate-key-file", str(pair.keyfile)),
            *("--http-management-port", str(management), "--http-management-scheme=http"),
            "--log-level=info,io.smallrye.health:off",
        )
        self.role = Role("keycloak", argv, env=env, cwd=home, log_path=directory / "keycloak.log")

    def start(self) -> None:
        """Returns when it serves."""
        self.role.start()
        self.wait()

    def wait(self) -> None:
        """Until it serves, after `role.start()`. RuntimeError where it does not."""
        end = time.monotonic() + _START
        while not self._ready():
            if not self.role.running or time.monotonic() > end:
                raise RuntimeError(f"Keycloak does not start:\n{self.role.log_tail(60)}")
            time.sleep(_LOOK)

    def _ready(self) -> bool:
        try:
            return httpx.get(self._health, timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def admin(self, realm: str = REALM) -> KeycloakAdmin:
        """For administration of this realm."""
        return KeycloakAdmin(
            connection=KeycloakOpenIDConnection(
                server_url=self.url,
                username="root",
                password=self._root_password,
                user_realm_name="master",
                realm_name=realm,
                verify=str(self.authority.certfile),
            )
        )

    def public_keys(self) -> list[dict[str, Any]]:
        """What the realm signs with, as everybody may see it."""
        context = ssl.create_default_context(cafile=str(self.authority.certfile))
        answer = httpx.get(f"{self.issuer}/protocol/openid-connect/certs", verify=context, timeout=60.0)
        found: list[dict[str, Any]] = answer.raise_for_status().json()["keys"]
        return found

    @contextmanager
    def access_tokens_for(self, seconds: int) -> Iterator[None]:
        """Logins and refreshes meanwhile get access tokens that are good for so long (the SuperLink adds a little)."""
        admin = self.admin()
        client = admin.get_client_id("trellis")
        assert client is not None
        admin.update_client(client, {"attributes": {"access.token.lifespan": str(seconds)}})
        try:
            yield
        finally:
            self.admin().update_client(client, {"attributes": {"access.token.lifespan": ""}})

    @contextmanager
    def new_key(self) -> Iterator[None]:
        """The realm signs with a key of its own meanwhile."""
        admin = self.admin()
        made = admin.create_component(
            {
                "name": "rotated",
                "providerId": "rsa-generated",
                "providerType": "org.keycloak.keys.KeyProvider",
                "parentId": admin.get_realm(REALM)["id"],
                "config": {"priority": ["200"], "enabled": ["true"], "active": ["true"], "algorithm": ["RS256"]},
            }
        )
        try:
            yield
        finally:
            self.admin().delete_component(made)

    def end_sessions(self, name: str) -> None:
        """The user is logged out everywhere, as an administrator does it."""
        admin = self.admin()
        user = admin.get_user_id(name)
        assert user is not None
        admin.user_logout(user)

    def add_user(self, name: str, *roles: str) -> None:
        """One who can log in, with these roles."""
        self.passwords[name] = secrets.token_urlsafe(16)
        admin = self.admin()
        user = admin.create_user(
            {
                "username": name,
                "email": f"{name}@example.org",
                "emailVerified": True,
                "firstName": name,
                "lastName": name,
                "enabled": True,
                "credentials": [{"type": "password", "value": self.passwords[name], "temporary": False}],
            }
        )
        if roles:
            admin.assign_realm_roles(user, [admin.get_realm_role(role) for role in roles])


def _own_copy(dist: Path, home: Path) -> None:
    """Keycloak keeps its database in its own folder: a folder with copies of its scripts and links to the rest."""
    shutil.copytree(dist / "bin", home / "bin")
    for part in dist.iterdir():
        if part.name not in ("bin", "data"):
            (home / part.name).symlink_to(part)
