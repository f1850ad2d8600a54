"""The rpcs of logging in: the device flow, which the SuperLink runs for command lines (WIRE.md 3.7)."""

from __future__ import annotations

from grpc import StatusCode
from trellis_wire.pb.edge import control_pb2

from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.rpc import Call
from trellis_superlink.identity.errors import LoginRefused
from trellis_superlink.identity.provider import Provider

AUTHN_TYPE = "oidc"
"""The one kind of login that stock command lines know."""


class Login:
    """Speaks to the provider for a command line, which never does."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def get_login_details(self, call: Call) -> None:
        await call.body()
        login = await self._provider.begin_login()
        await call.send(
            control_pb2.GetLoginDetailsResponse(
                authn_type=AUTHN_TYPE,
                device_code=login.device_code,
                verification_uri_complete=login.verification_uri,
                expires_in=login.expires_in,
                interval=login.interval,
            )
        )

    async def get_auth_tokens(self, call: Call) -> None:
        """An empty answer until the user has agreed: command lines take any error for the end."""
        request = await call.request(control_pb2.GetAuthTokensRequest)
        try:
            tokens = await self._provider.finish_login(request.device_code)
        except LoginRefused as error:
            raise EdgeError(StatusCode.PERMISSION_DENIED, str(error)) from error
        answer = control_pb2.GetAuthTokensResponse()
        if tokens is not None:
            answer.access_token, answer.refresh_token = tokens.access, tokens.refresh
        await call.send(answer)

    async def refresh_auth_tokens(self, call: Call) -> None:
        """From 1.37 on command lines ask for it themselves, after a 401."""
        request = await call.request(control_pb2.RefreshAuthTokensRequest)
        tokens = await self._provider.refresh(request.refresh_token)
        await call.send(control_pb2.RefreshAuthTokensResponse(access_token=tokens.access, refresh_token=tokens.refresh))
