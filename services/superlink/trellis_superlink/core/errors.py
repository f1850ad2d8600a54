"""What can go wrong in the core. The edges translate these in one table; nothing else leaves the core on purpose."""

from __future__ import annotations

from trellis_superlink.store.errors import TryAgainLater as TryAgainLater
from trellis_superlink.store.errors import Unusable as Unusable


class CoreError(Exception):
    """Base of what the core raises for a caller; `str(error)` is one sentence for people."""


class Unauthenticated(CoreError):
    """Who asks could not be established (unknown token, key that does not belong to the node)."""


class Forbidden(CoreError):
    """Who asks is known and may not do this."""


class NotFound(CoreError):
    """The thing does not exist, or not for who asks."""


class Refused(CoreError):
    """A rule was broken; asking again does not help."""


class BadFab(Refused):
    """The FAB is no FAB, too large, or not what its hash says."""


class BadConfig(Refused):
    """An override names a key that the app does not have."""


class BadObject(Refused):
    """An object or tree is malformed: wrong hash, head, children or length."""


class RunFinished(Refused):
    """Stop was asked for a run that has already finished."""


class RunUnfinished(Refused):
    """Something was asked that exists only once a run has finished."""


class KeyInUse(Refused):
    """The public key already belongs to a node."""


class KeyInvalid(Refused):
    """The public key is no EC public key in PEM form."""


class RegistrationClosed(Refused):
    """Only the operator registers nodes here (`--enable-supernode-auth`)."""


class Held(TryAgainLater):
    """The node waits for an operator's approval (`--unknown-supernodes hold`): the same again, later."""


class BadInterval(Refused):
    """The heartbeat interval is outside 10 to 1800 seconds (Flower 1.23 on)."""


class OverQuota(Refused):
    """The account has as much as it may have."""


class NoFederation(Refused):
    """The federation does not exist, or not for who asks."""


class BadFederationName(Refused):
    """A federation cannot be called this."""


class FederationExists(Refused):
    """A federation has, or had, this name."""


class MemberAlready(Refused):
    """The account is in the federation already."""


class NodeAlready(Refused):
    """The node is in the federation already."""


class NoMember(Refused):
    """The account is not in the federation."""


class NoInvitation(Refused):
    """No invitation to this federation is open."""


class RunOver(CoreError):
    """The run is over: whoever works on it may stop."""


class NoArtifacts(CoreError):
    """This SuperLink offers no artifacts for the run."""
