"""pytest fixtures that start federations. pytest finds them wherever this package is installed (docs/testing.md)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from trellis_testing.blocking import BlockingFederation
from trellis_testing.containers import FederationContainer
from trellis_testing.federation import TRELLIS, Federation, Layout, ProcessFederation

KINDS: dict[str, Callable[[Layout, Path], Federation]] = {
    "process": ProcessFederation,
    "container": lambda layout, _: FederationContainer(**vars(layout)),
}
"""What roles can run in: for each kind how to make a federation (not to start it) from a layout and a folder."""


_HOSTS = ("clientapp", "serverapp")


class StartFederation(Protocol):
    """Starts a federation, which ends with the fixture's scope."""

    def __call__(self, supernodes: int | Sequence[str] = 2, **layout: Any) -> BlockingFederation:
        """So many SuperNodes, or the release of each; `layout` is what else `trellis_testing.Layout` takes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--federation`, and what hosts apps: `--guest-python`, or `--clientapp-image` and `--serverapp-image`."""
    group = parser.getgroup("flower federations")
    group.addoption(
        "--federation", choices=sorted(KINDS), default="process", help="what the roles of federations run in"
    )
    group.addoption(
        "--guest-python",
        type=Path,
        metavar="PATH",
        help="the interpreter that hosts apps: its environment has flwr and what the apps import"
        " (default: an environment with flwr, numpy and scikit-learn, made once and kept)",
    )
    for role in _HOSTS:
        group.addoption(
            f"--{role}-image",
            metavar="IMAGE",
            help=f"with --federation container: the image of the {role} (default: ours)",
        )


@contextmanager
def _starting(config: pytest.Config, directories: pytest.TempPathFactory) -> Iterator[StartFederation]:
    guest: Path | None = config.getoption("--guest-python")
    if guest is not None and not guest.exists():
        raise pytest.UsageError(f"--guest-python: there is no {guest}; name the python of a virtual environment")
    with ExitStack() as started:

        def start(supernodes: int | Sequence[str] = 2, **layout: Any) -> BlockingFederation:
            releases = (TRELLIS,) * supernodes if isinstance(supernodes, int) else tuple(supernodes)
            given = {f"{role}_image": config.getoption(f"--{role}-image") for role in _HOSTS}
            given["guest_python"] = None if guest is None else guest.absolute()
            wanted = Layout(releases, **{**given, **layout})
            directory = directories.mktemp("federation")
            federation = BlockingFederation(partial(KINDS[config.getoption("--federation")], wanted, directory))
            started.callback(federation.stop)
            return federation

        yield start


@pytest.fixture
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartFederation]:
    """Starts federations for one test: `federation(supernodes=2).run("path/to/app", {"num-server-rounds": 3})`."""
    with _starting(request.config, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def federation_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartFederation]:
    """The same for fixtures of a module or of the whole session, whose tests share a federation."""
    with _starting(request.config, tmp_path_factory) as start:
        yield start
