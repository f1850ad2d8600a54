"""A session over HTTP (WIRE.md 3.7). Apart from session.py because httpx takes its time to load."""

from __future__ import annotations

from collections.abc import Generator

import httpx
from trellis_wire.pb.edge import control_pb2 as pb

from trellis_cli.credentials import Tokens
from trellis_cli.session import Session


class BearerAuth(httpx.Auth):
    """The access token in each request; after a 401 that asks for it, a new one and once more."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        tokens = self._session.tokens()
        if tokens is None:
            yield request
            return
        request.headers["authorization"] = f"Bearer {tokens.access}"
        response = yield request
        if response.status_code != 401 or response.headers.get("www-authenticate") != "Bearer" or not tokens.refresh:
            return
        asked = pb.RefreshAuthTokensRequest(refresh_token=tokens.refresh)
        answer = yield httpx.Request(
            "POST",
            request.url.copy_with(path="/v1/control/refresh-auth-tokens"),
            headers={**request.headers, "accept": "application/protobuf", "content-length": str(asked.ByteSize())},
            content=asked.SerializeToString(),
        )
        if answer.status_code != 200:
            return
        told = pb.RefreshAuthTokensResponse.FromString(answer.read())
        self._session.renewed(Tokens(told.access_token, told.refresh_token))
        request.headers["authorization"] = f"Bearer {told.access_token}"
        yield request
