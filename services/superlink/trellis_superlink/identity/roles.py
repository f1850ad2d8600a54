"""Roles give permissions: one table, which operators can replace (roles.toml beside this file is ours)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission


class RolesProblem(ValueError):
    """The table cannot be used; `str(error)` says which file and why."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    everybody: list[Permission] = []
    roles: dict[str, list[Permission]]


@dataclass(frozen=True)
class Roles:
    """`everybody`: what each account has besides."""

    permissions: Mapping[str, frozenset[Permission]]
    everybody: frozenset[Permission] = frozenset()

    @classmethod
    def read(cls, path: Path | None = None) -> Roles:
        """From a TOML file; None is our own. RolesProblem."""
        name = str(path or "roles.toml")
        try:
            text = (files(__package__) / "roles.toml").read_text("utf-8") if path is None else path.read_text("utf-8")
            told = _File.model_validate(tomllib.loads(text))
        except OSError as error:
            raise RolesProblem(f"{name} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RolesProblem(f"{name} is no TOML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RolesProblem(f"{name}: {where}: {first['msg']}") from error
        for role, permissions in [("everybody", told.everybody), *told.roles.items()]:
            if wrong := set(permissions) - OF_ACCOUNTS:
                raise RolesProblem(f"{name}: {role}: no role can give {', '.join(sorted(wrong))}")
        return cls({role: frozenset(given) for role, given in told.roles.items()}, frozenset(told.everybody))

    def of(self, roles: Iterable[str]) -> frozenset[Permission]:
        """What an account with these roles may do; roles that the table does not have give nothing."""
        return self.everybody.union(*(self.permissions.get(role, frozenset()) for role in roles))
