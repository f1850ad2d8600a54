"""From settings to who may do what: the provider, the roles, the guard before all edges, the audit log."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from trellis_kit.audit import AuditLog, AuditUnavailable
from trellis_kit.lifecycle import Fatal

from trellis_superlink.edges.guard import Accounts, Guard, OidcAccounts, OneAccount
from trellis_superlink.edges.login import Login
from trellis_superlink.identity.provider import Provider, ProviderConfig
from trellis_superlink.identity.roles import Roles, RolesProblem
from trellis_superlink.identity.stock_file import StockFile, StockFileProblem
from trellis_superlink.settings import SuperLinkSettings

_log = logging.getLogger(__name__)

CLIENT = "trellis"
"""What the SuperLink's client at the provider is called, unless the operator says."""


@dataclass(frozen=True)
class Identity:
    """`login` None: there is one account, as on stock."""

    guard: Guard
    login: Login | None
    provider: Provider | None
    audit: AuditLog | None

    @classmethod
    def of(cls, settings: SuperLinkSettings) -> Identity:
        """Fatal for settings that do not go together or files that cannot be used."""
        provider: Provider | None = None
        accounts: Accounts = OneAccount()
        config = provider_config(settings)
        if config is None and settings.roles_file is not None:
            raise Fatal("--roles-file says what accounts may do; without --oidc-issuer there is one, without roles.")
        try:
            if config is not None:
                provider = Provider(config)
                accounts = OidcAccounts(provider, Roles.read(settings.roles_file))
            audit = AuditLog(settings.audit_log) if settings.audit_log else None
        except (RolesProblem, AuditUnavailable, OSError) as error:
            raise Fatal(str(error)) from error
        return cls(Guard(accounts, audit), None if provider is None else Login(provider), provider, audit)

    async def close(self) -> None:
        if self.provider is not None:
            await self.provider.close()
        if self.audit is not None:
            await self.audit.close()


def provider_config(settings: SuperLinkSettings) -> ProviderConfig | None:
    """What the settings, or stock's file, say of the provider; None without login. Fatal."""
    issuer, client_id, secret = settings.oidc_issuer, settings.oidc_client_id, settings.oidc_client_secret
    if settings.account_auth_config is not None:
        try:
            stock = StockFile.read(settings.account_auth_config)
        except StockFileProblem as error:
            raise Fatal(f"--account-auth-config: {error}.") from error
        issuer = issuer or stock.issuer
        client_id, secret = client_id or stock.client_id, secret or stock.client_secret
        if not issuer:
            raise Fatal("--account-auth-config does not tell which provider issues the tokens: add --oidc-issuer.")
    if issuer is None:
        return None
    if settings.insecure:
        raise Fatal("Login needs TLS, without it tokens can be read on the way: give --ssl-certfile and --ssl-keyfile.")
    for flag, address in (("--oidc-issuer", issuer), ("--oidc-internal-url", settings.oidc_internal_url)):
        _check(flag, address)
    return ProviderConfig(
        issuer=issuer,
        client_id=client_id or CLIENT,
        client_secret=secret,
        internal_url=settings.oidc_internal_url,
        scope=settings.oidc_scope,
        audiences=frozenset(settings.oidc_audience),
        roles_claim=settings.oidc_roles_claim,
        ca_certfile=settings.oidc_ca_certfile,
    )


def _check(flag: str, address: str | None) -> None:
    if address is None:
        return
    parts = urlsplit(address)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Fatal(f"{flag} {address!r} is no address; expected https://host/path.")
    if parts.scheme == "http" and not _here(parts.hostname):
        if flag == "--oidc-issuer":
            raise Fatal(f"{flag} {address!r}: users would send their passwords there in the clear; expected https.")
        _log.warning("The provider is spoken to without TLS at %s: keep that network to the two of them", address)


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
