"""What `fab-format-version` asks of an app (Flower 1.28-1.42): a licence file and versions for 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from trellis_wire.fab.project import PYPROJECT, FabError

_LICENCES: Final = ("LICENSE", "LICENSE.md")


def check_format(project: dict[str, Any], paths: Sequence[str]) -> None:
    """Check a project against its format version; `paths` are the files that its FAB will hold. FabError."""
    requirement = _flwr_requirement(project["project"].get("dependencies", []))
    app = project["tool"]["flwr"]["app"]
    version = app.get("fab-format-version", 0)
    if version == 0:
        return
    if version != 1:
        raise FabError(f"'fab-format-version' {version} in {PYPROJECT} is unknown; use 0 or 1.")
    _check_licence(project["project"].get("license"), paths)
    _check_versions(requirement, app.get("flwr-version-target"))


def _flwr_requirement(dependencies: Any) -> Requirement | None:
    if not isinstance(dependencies, list) or not all(isinstance(entry, str) for entry in dependencies):
        raise FabError(f"'dependencies' in {PYPROJECT} must be a list of texts; correct it.")
    found: list[Requirement] = []
    for entry in dependencies:
        try:
            requirement = Requirement(entry)
        except InvalidRequirement as error:
            raise FabError(f"The dependency {entry!r} in {PYPROJECT} cannot be read; correct it.") from error
        if requirement.name == "flwr":
            found.append(requirement)
    if len(found) > 1:
        raise FabError(f"{PYPROJECT} lists flwr more than once in 'dependencies'; keep one entry.")
    return found[0] if found else None


def _check_licence(licence: Any, paths: Sequence[str]) -> None:
    file = licence.get("file") if isinstance(licence, dict) and "text" not in licence else None
    if file not in _LICENCES:
        raise FabError(f"'fab-format-version' 1 needs license = {{ file = \"LICENSE\" }} in {PYPROJECT}; add it.")
    if file not in paths:
        raise FabError(f"'fab-format-version' 1 needs the file {file} in the FAB; add it to the app.")


def _check_versions(requirement: Requirement | None, target: Any) -> None:
    if target is None:
        raise FabError("'fab-format-version' 1 needs 'flwr-version-target' in [tool.flwr.app]; add it.")
    bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="] if requirement else []
    if requirement is None or not bounds:
        raise FabError(f"'fab-format-version' 1 needs a dependency like \"flwr>=1.28\" in {PYPROJECT}; add it.")
    if Version(target) < max(bounds) or Version(target) not in requirement.specifier:
        raise FabError(
            f"'flwr-version-target' {target} is outside of {requirement} in {PYPROJECT}; correct one of them."
        )
