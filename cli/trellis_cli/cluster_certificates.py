"""A deployment's certificates where Kubernetes' Secrets are their home, and a folder only the workbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from trellis_cli.certificates import (
    AUTHORITIES,
    CERTIFICATE,
    EXECUTORS,
    KEY,
    NETWORK,
    TRUSTED,
    Authority,
    Deployment,
    kind_of,
)
from trellis_cli.commands.certs_options import CA_DAYS, LEAF_DAYS, RENEW_DAYS
from trellis_cli.secrets import Secret, Secrets

_FILES = (CERTIFICATE, KEY, TRUSTED, EXECUTORS)


@dataclass(frozen=True)
class Plan:
    """What shall be there: each role's Secret and names."""

    authorities: str  # the Secret with the CAs
    roles: Mapping[str, str]
    names: Mapping[str, Sequence[str]]
    labels: Mapping[str, str] = field(default_factory=dict)
    network_ca: Path | None = None  # of a SuperLink elsewhere
    days: int = LEAF_DAYS
    within: timedelta = timedelta(days=RENEW_DAYS)
    ca_days: int = CA_DAYS

    @property
    def own(self) -> list[Authority]:
        """The CAs that are ours: those that sign a role's certificate or are trusted by one."""
        kinds = [kind_of(role) for role in self.roles]
        needed = {one.name for kind in kinds for one in (kind.issuer, kind.trusts, kind.executors or kind.issuer)}
        return [one for one in AUTHORITIES if one.name in needed and not (one is NETWORK and self.network_ca)]


def provide(secrets: Secrets, folder: Path, plan: Plan) -> list[tuple[str, str]]:
    """Brings the Secrets to what the plan says, and tells what was issued and why. CliError."""
    deployment = Deployment(folder)
    issued = _authorities(secrets, deployment, plan)
    if plan.network_ca is not None:
        deployment.add_trusted(NETWORK, plan.network_ca)
    for role, name in plan.roles.items():
        secret = secrets.get(name)
        for file in _FILES:
            if secret is not None and secret.data.get(file):
                deployment.put(f"{role}/{file}", secret.data[file])
        names = plan.names.get(role) or [role]
        why = deployment.due(role, names, plan.within)
        if why is None:
            continue
        deployment.issue(role, names, plan.days)
        found = {file: (folder / role / file) for file in _FILES}
        data = {file: path.read_bytes() for file, path in found.items() if path.exists()}
        secrets.put(name, "kubernetes.io/tls", data, plan.labels, secret)
        issued.append((role, why))
    return issued


def _authorities(secrets: Secrets, deployment: Deployment, plan: Plan) -> list[tuple[str, str]]:
    """The CAs are in the folder, and those that had to be made are kept before anything is signed by them."""
    if not plan.own:
        return []
    secret: Secret | None = secrets.get(plan.authorities)
    data = {} if secret is None else dict(secret.data)
    made = []
    for authority in plan.own:
        files = [f"{authority.name}.{suffix}" for suffix in ("key", "crt")]
        for file in files:
            if file in data:
                deployment.put(file, data[file])
        if not deployment.has(authority):
            deployment.make_authority(authority, plan.ca_days)
            data |= {file: (deployment.folder / file).read_bytes() for file in files}
            made.append((authority.name, "there is none"))
    if made:
        secrets.put(plan.authorities, "Opaque", data, plan.labels, secret)
    return made
