"""The Secrets of a Kubernetes namespace, as a pod reads and writes them with its own account."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trellis_cli.errors import CliError, Unreachable, UsageError

OURS = ("app.kubernetes.io/managed-by", "trellis-certs")
"""The label of what we made; what somebody else made is never written to."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 20.0


@dataclass(frozen=True)
class Secret:
    """One as it was read; `document` is all that the API server says of it."""

    name: str
    data: Mapping[str, bytes]
    document: Mapping[str, Any]

    @property
    def ours(self) -> bool:
        labels: Mapping[str, str] = self.document["metadata"].get("labels") or {}
        return labels.get(OURS[0]) == OURS[1]


class Secrets:
    """Those of one namespace."""

    def __init__(self, client: httpx.Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    @classmethod
    def of_pod(
        cls, namespace: str | None, environ: Mapping[str, str] = os.environ, account: Path | None = None
    ) -> Secrets:
        """By what Kubernetes gives each pod. UsageError where this is none, or has no token."""
        account = account or _ACCOUNT
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        try:
            token = (account / "token").read_text().strip()
            context = ssl.create_default_context(cafile=str(account / "ca.crt"))
            namespace = namespace or (account / "namespace").read_text().strip()
        except OSError as error:
            raise UsageError(
                f"This runs in a pod that has its service account's token; {error.filename or account} cannot be read "
                f"({error.strerror})."
            ) from error
        if not host:
            raise UsageError("This runs in a pod of Kubernetes; KUBERNETES_SERVICE_HOST is not set.")
        client = httpx.Client(
            base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            headers={"authorization": f"Bearer {token}"},
            verify=context,
            timeout=_SECONDS,
            trust_env=False,  # no proxy is between a pod and its API server
        )
        return cls(client, namespace)

    def get(self, name: str) -> Secret | None:
        """None where there is none of that name. CliError."""
        answer = self._ask("GET", f"{self._path}/{name}")
        if answer.status_code == 404:
            return None
        document = self._good(answer, "read", name)
        data = {key: base64.b64decode(value) for key, value in (document.get("data") or {}).items()}
        return Secret(name, data, document)

    def put(
        self, name: str, kind: str, data: Mapping[str, bytes], labels: Mapping[str, str], before: Secret | None
    ) -> None:
        """Make it, or replace `before`. CliError, also where it has changed since, or is somebody else's."""
        if before is not None and not before.ours:
            raise CliError(
                f"The Secret {name} in {self._namespace} was not made by `trellis certs` and is left alone: delete it, "
                "or use it as it is (tls.source: existingSecrets)."
            )
        metadata: dict[str, Any] = {"name": name, "namespace": self._namespace, "labels": {**labels, OURS[0]: OURS[1]}}
        document: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind}
        document["data"] = {key: base64.b64encode(value).decode() for key, value in data.items()}
        if before is None:
            answer = self._ask("POST", self._path, document)
        else:
            old = before.document["metadata"]
            metadata["resourceVersion"] = old["resourceVersion"]
            metadata["labels"] = {**(old.get("labels") or {}), **metadata["labels"]}
            metadata["annotations"] = old.get("annotations") or {}
            document["type"] = before.document.get("type", kind)  # which cannot be changed
            answer = self._ask("PUT", f"{self._path}/{name}", document)
        if answer.status_code == 409:
            raise Unreachable(f"Somebody else wrote the Secret {name} in {self._namespace} just now; run this again.")
        self._good(answer, "written", name)

    def _ask(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=document)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"The API server {self._client.base_url} cannot be reached ({error or type(error).__name__}); a "
                "network policy may be in between."
            ) from error

    def _good(self, answer: httpx.Response, done: str, name: str) -> Mapping[str, Any]:
        try:
            document = answer.json()
        except ValueError:
            document = None
        if answer.is_success and isinstance(document, dict):
            return document
        said = document.get("message") if isinstance(document, dict) else None
        sentence = f"The Secret {name} in {self._namespace} could not be {done}"
        if answer.status_code in (401, 403):
            raise CliError(f"{sentence}: this pod's service account may not ({said or answer.status_code}).")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unreachable(f"{sentence} now: the API server says {said or answer.status_code}.")
        raise CliError(f"{sentence}: the API server says {said or answer.status_code}.")
