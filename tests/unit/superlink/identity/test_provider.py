"""The SuperLink before a provider that is played here: device logins, refreshing, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from trellis_superlink.identity import provider as module
from trellis_superlink.identity.errors import LoginRefused, ProviderAway, TokenProblem
from trellis_superlink.identity.provider import REMEMBERED, Provider, ProviderConfig, Tokens

ISSUER = "https://login.example.org/realms/trellis"
INSIDE = "http://keycloak:8080/realms/trellis"
TOKENS = {"access_token": "a", "refresh_token": "r"}


class Played:
    """Answers what `answers` has for the last part of the address: a JSON body, a status and a body, or an error."""

    def __init__(self, **config: Any) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.addresses: list[str] = []
        self.answers: dict[str, Any] = {
            "openid-configuration": {
                "issuer": ISSUER,
                "device_authorization_endpoint": f"{ISSUER}/device",
                "token_endpoint": f"{ISSUER}/token",
                "jwks_uri": f"{ISSUER}/certs",
            },
            "device": {
                "device_code": "code",
                "verification_uri_complete": f"{INSIDE}/device?user_code=AB",
                "expires_in": 600,
                "interval": 5,
            },
            "token": TOKENS,
        }
        self.clock = 1000.0
        self.provider = Provider(ProviderConfig(ISSUER, "trellis", **config), clock=lambda: self.clock)
        self.provider._http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        self.addresses.append(str(request.url))
        self.asked.append((name, dict(httpx.QueryParams(request.content.decode()))))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(body, str):
            return httpx.Response(status, text=body)
        return httpx.Response(status, json=body)

    def times(self, name: str) -> int:
        return [one for one, _ in self.asked].count(name)


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    found = Played()
    yield found
    await found.provider.close()


async def test_a_login_that_waits_for_its_user(played: Played) -> None:
    login = await played.provider.begin_login()
    assert (login.device_code, login.interval, login.expires_in) == ("code", 5, 600)
    played.answers["token"] = (400, {"error": "authorization_pending"})
    assert await played.provider.finish_login("code") is None
    asked = played.times("token")
    assert await played.provider.finish_login("code") is None  # too soon: the provider is not asked
    assert played.times("token") == asked == 1
    played.clock += 5
    played.answers["token"] = (400, {"error": "slow_down"})
    assert await played.provider.finish_login("code") is None
    played.clock += 9
    assert await played.provider.finish_login("code") is None
    assert played.times("token") == 2  # five seconds more between two questions from now on
    played.clock += 1
    played.answers["token"] = TOKENS
    assert await played.provider.finish_login("code") == Tokens("a", "r")
    with pytest.raises(LoginRefused):
        await played.provider.finish_login("code")
    form = played.asked[-1][1]
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"
    assert form["client_id"] == "trellis"
    assert "client_secret" not in form


@pytest.mark.parametrize(
    ("error", "told"),
    [("access_denied", "denied"), ("expired_token", "too long"), ("invalid_grant", "ended"), (None, "ended")],
)
async def test_a_login_that_comes_to_nothing(error: str | None, told: str, played: Played) -> None:
    await played.provider.begin_login()
    played.answers["token"] = (400, {} if error is None else {"error": error, "error_description": "s3cret"})
    with pytest.raises(LoginRefused, match=told) as refused:
        await played.provider.finish_login("code")
    assert "s3cret" not in str(refused.value)


async def test_logins_that_nobody_began_or_that_are_over(played: Played) -> None:
    with pytest.raises(LoginRefused):
        await played.provider.finish_login("made up")
    assert played.asked == []  # the provider does not hear of what strangers make up
    await played.provider.begin_login()
    played.clock += 601
    with pytest.raises(LoginRefused):
        await played.provider.finish_login("code")
    assert played.times("token") == 0


async def test_only_so_many_logins_at_once(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    for number in range(2):
        played.answers["device"]["device_code"] = f"code-{number}"
        await played.provider.begin_login()
    played.answers["device"]["device_code"] = "code-2"
    with pytest.raises(ProviderAway, match="Too many"):
        await played.provider.begin_login()
    played.clock += 601
    await played.provider.begin_login()


async def test_a_refresh_token_is_used_once_however_often_it_is_shown(played: Played) -> None:
    """A command line may ask several times at once, and a provider may take each only once."""
    found = await asyncio.gather(*(played.provider.refresh("old") for _ in range(5)))
    assert set(found) == {Tokens("a", "r")}
    assert played.times("token") == 1
    played.clock += REMEMBERED + 1
    played.answers["token"] = (400, {"error": "invalid_grant"})
    with pytest.raises(TokenProblem):
        await played.provider.refresh("old")
    played.answers["token"] = TOKENS
    await played.provider.refresh("old")  # a failure is not remembered
    assert played.times("token") == 3


async def test_inside_and_outside_addresses() -> None:
    played = Played(internal_url=INSIDE, client_secret="s3cret")
    login = await played.provider.begin_login()
    assert login.verification_uri == f"{ISSUER}/device?user_code=AB"  # opens in the user's browser
    assert played.addresses == [f"{INSIDE}/.well-known/openid-configuration", f"{INSIDE}/device"]
    assert played.asked[-1][1]["client_secret"] == "s3cret"
    await played.provider.close()


def _described(played: Played, **changes: Any) -> None:
    played.answers["openid-configuration"] |= changes


@pytest.mark.parametrize(
    "spoil",
    [
        lambda played: _described(played, issuer="https://login.example.org/realms/other"),
        lambda played: _described(played, device_authorization_endpoint=None),
        lambda played: played.answers.update({"openid-configuration": "<html>Welcome</html>"}),
        lambda played: played.answers.update(device=(401, {"error": "invalid_client", "error_description": "s3cret"})),
        lambda played: played.answers.update(device=(302, "")),
        lambda played: played.answers.update(device=(500, "")),
        lambda played: played.answers.update(device={"device_code": 7}),
        lambda played: played.answers.update(device=httpx.ConnectError("nobody")),
    ],
)
async def test_answers_that_are_none(spoil: Callable[[Played], None], played: Played) -> None:
    """Whoever asks may be anybody: what is wrong stands in the log."""
    spoil(played)
    with pytest.raises(ProviderAway) as away:
        await played.provider.begin_login()
    assert "s3cret" not in str(away.value)
