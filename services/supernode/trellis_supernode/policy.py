"""What may run on this site: the data's owner decides, in one TOML file (docs/site-policy.md)."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from trellis_kit.audit import AuditLog, Entry, Outcome
from trellis_wire.fab import inspect
from trellis_wire.signing import SigningProblem, key_id, read_public, signer


class PolicyProblem(ValueError):
    """The policy cannot be used; `str(error)` says which file and why."""


@dataclass(frozen=True)
class Asked:
    """A run as the SuperLink tells of it; "" where it does not."""

    run_id: int
    fab_id: str  # publisher/name
    fab_hash: str
    account: str
    federation: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    publishers: frozenset[str] | None = None
    apps: frozenset[str] | None = None
    fab_hashes: frozenset[str] | None = Field(None, alias="fab-hashes")
    accounts: frozenset[str] | None = None
    federations: frozenset[str] | None = None
    signed_by: list[str] | None = Field(None, alias="signed-by")


@dataclass(frozen=True)
class Policy:
    """Each rule that is written must hold; None is no rule."""

    publishers: frozenset[str] | None = None
    apps: frozenset[str] | None = None
    fab_hashes: frozenset[str] | None = None
    accounts: frozenset[str] | None = None
    federations: frozenset[str] | None = None
    signers: Mapping[str, Ed25519PublicKey] | None = None

    @classmethod
    def read(cls, path: Path) -> Policy:
        """PolicyProblem."""
        try:
            told = _File.model_validate(tomllib.loads(path.read_text("utf-8")))
            keys = None if told.signed_by is None else [read_public(line) for line in told.signed_by]
        except OSError as error:
            raise PolicyProblem(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PolicyProblem(f"{path} is no TOML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise PolicyProblem(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except SigningProblem as error:
            raise PolicyProblem(f"{path}: signed-by: {error}") from error
        for one in told.fab_hashes or ():
            if re.fullmatch(r"[0-9a-f]{64}", one) is None:
                raise PolicyProblem(f"{path}: fab-hashes: {one!r} is no SHA-256 in lowercase hex")
        return cls(
            told.publishers,
            told.apps,
            told.fab_hashes,
            told.accounts,
            told.federations,
            None if keys is None else {key_id(key): key for key in keys},
        )

    def trusting(self, entities: Path) -> Policy:
        """With the keys of stock's --trusted-entities, a YAML mapping from names to OpenSSH keys. PolicyProblem."""
        try:
            told = yaml.safe_load(entities.read_text("utf-8"))
            if not isinstance(told, dict):
                raise PolicyProblem(f"{entities} is no mapping from key names to OpenSSH keys")
            keys = {str(name): read_public(str(line)) for name, line in told.items()}
        except OSError as error:
            raise PolicyProblem(f"{entities} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PolicyProblem(f"{entities} is no YAML: {error}") from error
        except SigningProblem as error:
            raise PolicyProblem(f"{entities}: {error}") from error
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Policy(**values | {"signers": {**(self.signers or {}), **keys}})

    def denial(self, run: Asked) -> str | None:
        """Why the run may not use this site, in a sentence for whoever submitted it; None where it may."""
        publisher = run.fab_id.partition("/")[0]
        rules = (
            (self.publishers, publisher, f"apps of the publisher {publisher!r}"),
            (self.apps, run.fab_id, f"the app {run.fab_id!r}"),
            (self.fab_hashes, run.fab_hash, f"the app's version with the hash {run.fab_hash[:16]}..."),
            (self.accounts, run.account, f"runs of the account {run.account!r}"),
            (self.federations, run.federation, f"runs of the federation {run.federation!r}"),
        )
        for allowed, told, what in rules:
            if allowed is not None and told not in allowed:
                return f"This site's policy does not allow {what}; ask its operator."
        return None

    def unsigned(self, fab_hash: str, signatures: Mapping[str, str]) -> str | None:
        """The same of the signatures that came with the run's FAB."""
        if self.signers is None or signer(fab_hash, signatures, self.signers) is not None:
            return None
        return "This site's policy takes apps only that somebody it trusts has signed; ask its operator who."


class Gate:
    """The policy in force, with its audit log: each run's decision is on the disk before it has an effect."""

    def __init__(self, policy: Policy, audit: AuditLog | None = None) -> None:
        self._policy = policy
        self._audit = audit

    @property
    def looks_at_signatures(self) -> bool:
        return self._policy.signers is not None

    async def denial(self, run: Asked) -> str | None:
        """As `Policy.denial`. AuditUnavailable."""
        return await self._decided(run, self._policy.denial(run))

    async def unsigned(self, run: Asked, signatures: Mapping[str, str]) -> str | None:
        """As `Policy.unsigned`. AuditUnavailable."""
        return await self._decided(run, self._policy.unsigned(run.fab_hash, signatures))

    async def renamed(self, run: Asked, content: bytes) -> str | None:
        """What was decided on is the app's own name, not one that the SuperLink gave it. AuditUnavailable."""
        name = (await asyncio.to_thread(inspect, content)).fab_id
        denial = None if name == run.fab_id else f"The SuperLink calls the app {run.fab_id!r}, it is {name!r}."
        return await self._decided(run, denial, last=True)

    async def _decided(self, run: Asked, denial: str | None, *, last: bool = False) -> str | None:
        if self._audit is not None and (last or denial is not None):
            entry = Entry(
                action="Site.AdmitRun",
                outcome=Outcome.COMPLETED if denial is None else Outcome.DENIED,
                kind="account",
                actor_id=None,
                description=run.account or None,
                ip_address="",
                run_id=run.run_id,
                fab_hash=run.fab_hash,
                reason=denial,
                more={"fab_id": run.fab_id, "federation": run.federation or None},
            )
            await self._audit.write(entry)
        return denial
