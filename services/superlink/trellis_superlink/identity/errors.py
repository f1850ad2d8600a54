"""What can go wrong between the SuperLink and an OpenID Connect provider."""

from __future__ import annotations

from trellis_superlink.core.errors import TryAgainLater, Unauthenticated


class TokenProblem(Unauthenticated):
    """The token is none of ours. Why is for the log only: whoever sent it learns nothing of it."""


class TokenExpired(TokenProblem):
    """It was ours; a refresh token may bring another."""


class ProviderAway(TryAgainLater):
    """The provider does not answer, or not as a provider does."""


class LoginRefused(Exception):
    """The provider ended this login: the user said no, or took too long. `str(error)` is one sentence for people."""
