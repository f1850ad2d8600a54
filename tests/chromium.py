"""A real browser without a window, and a user who logs in with it."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as ec
from selenium.webdriver.support.wait import WebDriverWait

_SECONDS = 120.0
T = TypeVar("T")


class Chromium:
    """Trusts one server's key, whoever signed its certificate."""

    def __init__(self, certificate: Path, profile: Path) -> None:
        driver = shutil.which("chromedriver")
        assert driver is not None, "chromedriver is not installed (scripts/install-test-tools)"
        key = load_pem_x509_certificate(certificate.read_bytes()).public_key()
        digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        options = ChromeOptions()
        for argument in (
            "--headless=new",
            "--no-sandbox",  # of its own: tests run as root in CI
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}",
        ):
            options.add_argument(argument)
        self._browser = Chrome(options=options, service=ChromeService(driver))

    def agree(self, page: str, user: str, password: str) -> None:
        """Opens the page that a command line printed, logs in there, and grants."""
        self._browser.get(page)
        self._find("username").send_keys(user)
        self._find("password").send_keys(password)
        self._find("login").click()
        self._find("accept").click()
        self._until(ec.text_to_be_present_in_element((By.TAG_NAME, "body"), "Device Login Successful"))

    def _find(self, name: str) -> WebElement:
        return self._until(ec.element_to_be_clickable((By.NAME, name)))

    def _until(self, condition: Callable[[WebDriver], Literal[False] | T]) -> T:
        try:
            return WebDriverWait(self._browser, _SECONDS).until(condition)
        except TimeoutException as error:
            seen = self._browser.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"The browser waits in vain at {self._browser.current_url}: {seen}") from error

    def close(self) -> None:
        self._browser.quit()
