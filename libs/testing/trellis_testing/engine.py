"""What test sessions make on the Docker engine, and its removal: of this session's when it ends, and of what sessions
that were killed left behind when the next one begins.

testcontainers labels containers and networks with the id of the session (one per process). A session holds a lock on a
file of that name as long as it lives, so whoever gets the lock knows that it is gone. Ryuk, the container that
testcontainers starts for this purpose, is not needed.
"""

from __future__ import annotations

import atexit
import fcntl
import os
from functools import cache
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from trellis_testing.venvs import cache_folder

_held: list[Any] = []  # the lock goes with the process, however it ends


class NoEngine(Exception):
    """No Docker engine answers; the text says what to do."""


@cache
def engine() -> docker.DockerClient:
    """The engine that `docker` talks to. The first call of a process removes what dead sessions left. NoEngine."""
    try:
        client = DockerClient().client
        client.ping()
    except DockerException as error:
        raise NoEngine(
            f"No Docker engine answers ({error}). Start one, or start federations as processes of this machine."
        ) from error
    _claim(client)
    return client


def _claim(client: docker.DockerClient) -> None:
    folder = cache_folder() / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.lock"):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its session lives
            remove(client, path.stem)
            path.unlink(missing_ok=True)
    own = folder / f"{SESSION_ID}.lock"
    unlocked = folder / f"{SESSION_ID}.{os.getpid()}"
    _held.append(unlocked.open("w"))
    fcntl.flock(_held[0], fcntl.LOCK_EX)
    unlocked.rename(own)  # nobody sees it before it is locked

    def leave() -> None:
        remove(client, SESSION_ID)
        own.unlink(missing_ok=True)

    atexit.register(leave)


def remove(client: docker.DockerClient, session: str) -> None:
    """Remove every container, network and volume of a session."""
    mine = {"label": f"{LABEL_SESSION_ID}={session}"}
    discard(client.containers.list(all=True, filters=mine, ignore_removed=True))
    discard([*client.networks.list(filters=mine), *client.volumes.list(filters=mine)])


def discard(things: list[Any]) -> None:
    """Remove containers, networks or volumes; those that are gone already are fine.

    One after the other: Docker 20.10 locks up for good now and then where several containers with several networks end
    at once (libnetwork holds a network and wants the controller, and the other way round).
    """
    for thing in things:
        _discard(thing)


def _discard(thing: Any) -> None:
    try:
        if getattr(thing, "status", "") == "paused":
            thing.unpause()  # a paused container cannot be killed
        if hasattr(thing, "kill"):
            thing.remove(force=True, v=True)
        else:
            thing.remove()
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # somebody else is removing it
            raise
