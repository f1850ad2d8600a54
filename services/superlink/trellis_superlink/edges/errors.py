"""The one table from what the core raises to what a gRPC peer is told.

The statuses are those that stock peers act on (WIRE.md 2.6, 3.6): PERMISSION_DENIED tells a node that the run is over
and nothing else, UNAUTHENTICATED ends a node, UNAVAILABLE means "the same again, later".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from grpc import StatusCode
from trellis_kit.audit import AuditUnavailable
from trellis_wire.config import ConfigError
from trellis_wire.identity import KeyProblem, SignatureProblem
from trellis_wire.objects import ObjectError
from trellis_wire.signing import SigningProblem

from trellis_superlink.core import errors as core
from trellis_superlink.identity.errors import TokenProblem

MAX_TEXT = 1000
"""Characters: peers take 8 KiB of headers, in which details are percent-encoded."""


def _fit(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in cut)


class EdgeError(Exception):
    """Ends a call with a status. `code` is the number in Flower's error catalogue (1.33 on), where it has one.

    The text may quote what somebody sent: it is cut, and control characters are left out of it.
    """

    def __init__(self, status: StatusCode, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = _fit(text)
        self.code = code

    def as_json(self) -> str:
        """The details as Flower 1.33-1.36 reads them over gRPC."""
        return json.dumps({"code": self.code, "public_message": self.text, "public_details": None})


@dataclass(frozen=True)
class Answer:
    """What an exception becomes. `text` None: the exception's own sentence."""

    status: StatusCode
    code: int | None = None
    text: str | None = None


# Looked up along the exception's class hierarchy, so a subclass without an entry is answered like its base.
ANSWERS: Mapping[type[Exception], Answer] = {
    core.TryAgainLater: Answer(StatusCode.UNAVAILABLE),
    AuditUnavailable: Answer(StatusCode.UNAVAILABLE),
    core.Unauthenticated: Answer(StatusCode.UNAUTHENTICATED),
    TokenProblem: Answer(StatusCode.UNAUTHENTICATED, text="Not authenticated"),
    core.Forbidden: Answer(StatusCode.PERMISSION_DENIED, 9),
    core.NotFound: Answer(StatusCode.NOT_FOUND),
    core.Refused: Answer(StatusCode.FAILED_PRECONDITION),
    core.BadConfig: Answer(StatusCode.FAILED_PRECONDITION, 15),
    core.RunFinished: Answer(StatusCode.FAILED_PRECONDITION, 18),
    core.RunUnfinished: Answer(StatusCode.FAILED_PRECONDITION, 21, "Cannot pull artifacts for an unfinished run"),
    core.KeyInUse: Answer(StatusCode.FAILED_PRECONDITION, 23, "Public key already in use"),
    core.KeyInvalid: Answer(StatusCode.FAILED_PRECONDITION, 22, "The provided public key is not valid"),
    core.RegistrationClosed: Answer(StatusCode.FAILED_PRECONDITION, 2001),
    core.BadInterval: Answer(StatusCode.INVALID_ARGUMENT, 2003),
    core.OverQuota: Answer(StatusCode.FAILED_PRECONDITION, 13),
    core.NoFederation: Answer(StatusCode.FAILED_PRECONDITION, 25),
    core.BadFederationName: Answer(StatusCode.FAILED_PRECONDITION, 27),
    core.FederationExists: Answer(StatusCode.ALREADY_EXISTS, 4),
    core.MemberAlready: Answer(StatusCode.FAILED_PRECONDITION, 3),
    core.NodeAlready: Answer(StatusCode.FAILED_PRECONDITION, 11),
    core.NoMember: Answer(StatusCode.FAILED_PRECONDITION, 8),
    core.NoInvitation: Answer(StatusCode.NOT_FOUND, 7),
    core.RunOver: Answer(StatusCode.PERMISSION_DENIED),
    core.NoArtifacts: Answer(StatusCode.UNIMPLEMENTED, 20, "ControlServicer initialized without artifact provider"),
    ConfigError: Answer(StatusCode.INVALID_ARGUMENT),
    KeyProblem: Answer(StatusCode.FAILED_PRECONDITION, 22, "The provided public key is not valid"),
    ObjectError: Answer(StatusCode.FAILED_PRECONDITION),
    SignatureProblem: Answer(StatusCode.UNAUTHENTICATED),
    SigningProblem: Answer(StatusCode.FAILED_PRECONDITION),
}

# A node must not take "you may not" for "the run is over".
FLEET_ANSWERS: Mapping[type[Exception], Answer] = {
    **ANSWERS,
    core.Forbidden: Answer(StatusCode.FAILED_PRECONDITION),
    core.RunOver: Answer(StatusCode.PERMISSION_DENIED, 2007),
}


def translate(error: Exception, answers: Mapping[type[Exception], Answer] = ANSWERS) -> EdgeError | None:
    """The answer to an expected exception; None for one that nobody expected."""
    if isinstance(error, EdgeError):
        return error
    for kind in type(error).__mro__:
        if kind in answers:
            answer = answers[kind]
            return EdgeError(answer.status, answer.text or str(error), answer.code)
    return None
