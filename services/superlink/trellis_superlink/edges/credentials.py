"""How an executor shows that it belongs here. A provider looks at a call and knows the executor, or does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from grpc import StatusCode
from trellis_kit.renewable import Renewable

from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.rpc import Call

JOIN_TOKEN = "trellis-join-token"


class CredentialProvider(ABC):
    """One way of identifying executors."""

    @abstractmethod
    def identify(self, call: Call) -> str | None:
        """A name for the caller if this provider's credential is there and good; None if it is not there.

        EdgeError (UNAUTHENTICATED) when it is there and wrong.
        """


class JoinToken(CredentialProvider):
    """A secret that all executors of a deployment share, compared in constant time."""

    def __init__(self, tokens: Renewable) -> None:
        self._tokens = tokens

    def identify(self, call: Call) -> str | None:
        given = call.header(JOIN_TOKEN)
        if not given:
            return None
        if not self._tokens.takes(given):
            raise EdgeError(StatusCode.UNAUTHENTICATED, "The join token is wrong.")
        return "join-token"


class ClientCertificate(CredentialProvider):
    """Nothing more is asked for: TLS lets in only who holds a certificate of the executors' CA."""

    def identify(self, call: Call) -> str | None:
        return "certificate"


class Anybody(CredentialProvider):
    """No credential asked for: whoever reaches the port may attend, as on stock."""

    def identify(self, call: Call) -> str | None:
        return "anybody"


def identify(providers: Sequence[CredentialProvider], call: Call) -> str:
    """The name that the first knowing provider gives; UNAUTHENTICATED where none does."""
    for provider in providers:
        if (name := provider.identify(call)) is not None:
            return name
    raise EdgeError(
        StatusCode.UNAUTHENTICATED,
        "This SuperLink asks executors for a join token: start trellis-serverapp with --join-token-file.",
    )
