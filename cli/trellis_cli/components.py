"""Whether an app has what its pyproject.toml names as its components, so that a slip is told before a run is spent."""

import ast
import io
import zipfile
from collections.abc import Iterator

from trellis_wire.fab import FabInfo


def problem(content: bytes, info: FabInfo) -> str | None:
    """What is wrong with the components of this (sound) FAB, or None.

    Nothing is imported: the apps' libraries need not be here. What cannot be told from the text, such as a module of
    an installed package or a name that `from x import *` may bring, is taken as it is.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = frozenset(archive.namelist())
        for key, reference in (("serverapp", info.serverapp), ("clientapp", info.clientapp)):
            if reference is None:
                continue
            module, _, attribute = reference.partition(":")
            path = module.replace(".", "/")
            top = path.partition("/")[0]
            if f"{top}.py" not in members and not any(member.startswith(f"{top}/") for member in members):
                continue
            where = f'{key} = "{reference}" in [tool.flwr.app.components]'
            file = next((one for one in (f"{path}.py", f"{path}/__init__.py") if one in members), None)
            if file is None:
                return f"{where} names {path}.py, which the app does not have (or leaves out by .gitignore)."
            name = attribute.partition(".")[0]
            if not _may_bind(archive.read(file), name):
                return f"{where} names {name!r}, which {file} does not define."
    return None


def _may_bind(source: bytes, name: str) -> bool:
    try:
        names = set(_names(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # perhaps of a newer Python than this one
        return True
    return bool(names & {name, "*", "__getattr__"})


def _names(tree: ast.Module) -> Iterator[str]:
    """Everything that is given a value anywhere in a module; inside of functions too, as `global` reaches out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
