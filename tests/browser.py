"""A user's browser, as far as Keycloak's pages need one; a real one is in chromium.py."""

from __future__ import annotations

import ssl
from html.parser import HTMLParser
from pathlib import Path

import httpx


class Browser:
    """Trusts one certificate authority, and knows forms and cookies."""

    def __init__(self, ca: Path) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        self._http = httpx.Client(verify=context, follow_redirects=True, timeout=180)

    def agree(self, page: str, user: str, password: str) -> None:
        """Opens the page that a command line printed, logs in there, and grants."""
        asked = self._log_in(page, user, password)
        told = self._submit(asked, {"accept": "Yes"})
        assert "Device Login Successful" in told.text, told.text

    def deny(self, page: str, user: str, password: str) -> None:
        """The same, but says no."""
        self._submit(self._log_in(page, user, password), {"cancel": "No"})

    def _log_in(self, page: str, user: str, password: str) -> httpx.Response:
        asked = self._submit(self._http.get(page), {"username": user, "password": password})
        assert "Do you grant" in asked.text, asked.text
        return asked

    def _submit(self, page: httpx.Response, values: dict[str, str]) -> httpx.Response:
        form = _Form()
        form.feed(page.text)
        assert form.action is not None, page.text
        return self._http.post(page.url.join(form.action), data={**form.hidden, **values})

    def close(self) -> None:
        self._http.close()


class _Form(HTMLParser):
    """The first form of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.hidden: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = given.get("action", "")
        elif tag == "input" and given.get("type") == "hidden" and "name" in given:
            self.hidden[given["name"]] = given.get("value", "")
