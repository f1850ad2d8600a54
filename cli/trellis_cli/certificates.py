"""A deployment's certificates: three CAs, a folder for each role, and what is safe about the files.

Who trusts whom is in docs/secure.md. In short: `ca` signs the SuperLink's certificate, `serverapp-ca` those of
ServerApp executors, `site-ca` those of SuperNodes and ClientApp executors. Servers' certificates are good for servers
only and executors' for clients only, so neither can stand in for the other, nor one kind of executor for the other.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from trellis_kit import certificates
from trellis_kit.certificates import Facts

from trellis_cli.commands.certs_options import RENEW_DAYS
from trellis_cli.errors import UsageError

CERTIFICATE, KEY, TRUSTED, EXECUTORS = "tls.crt", "tls.key", "ca.crt", "executor-ca.crt"
"""The files in a role's folder: its certificate and key, the CA that it trusts, and the CA of its executors."""

_LOCAL = ("localhost", "127.0.0.1", "::1")
_EARLY = timedelta(minutes=5)  # for clocks that differ a little
_SOUND = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Authority:
    """One of the CAs; `usages` bound what it can vouch for."""

    name: str
    title: str
    usages: tuple[x509.ObjectIdentifier, ...]


NETWORK = Authority("ca", "Trellis network CA", (_SERVER,))
SERVERAPPS = Authority("serverapp-ca", "Trellis ServerApp CA", (_CLIENT,))
SITE = Authority("site-ca", "Trellis site CA", (_SERVER, _CLIENT))
AUTHORITIES: Final = (NETWORK, SERVERAPPS, SITE)


@dataclass(frozen=True)
class Kind:
    """What a role's certificate is for, and what lies beside it."""

    name: str
    issuer: Authority
    usage: x509.ObjectIdentifier
    trusts: Authority
    executors: Authority | None = None


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("superlink", NETWORK, _SERVER, trusts=NETWORK, executors=SERVERAPPS),
        Kind("serverapp", SERVERAPPS, _CLIENT, trusts=NETWORK),
        # A SuperNode is a client of the SuperLink, too: it trusts the network's CA there and shows its own key.
        Kind("supernode", SITE, _SERVER, trusts=NETWORK, executors=SITE),
        Kind("clientapp", SITE, _CLIENT, trusts=SITE),
        # In Kubernetes; whoever knows the SuperLink knows where to log in.
        Kind("keycloak", NETWORK, _SERVER, trusts=NETWORK),
    )
}


@dataclass(frozen=True)
class Access:
    """Who may read private keys: their mode, and whose they are. None: as before; new ones are for their maker."""

    mode: int | None = None
    owner: tuple[int, int] | None = None

    def apply(self, handle: int, before: Path) -> None:
        """To the open file that takes the place of `before`. OSError."""
        mode, owner = self.mode, self.owner
        if before.exists():
            found = before.stat()
            mode = found.st_mode & 0o777 if mode is None else mode
            if owner is None and (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                owner = (found.st_uid, found.st_gid)
        if owner is not None:
            os.fchown(handle, *owner)
        os.fchmod(handle, 0o600 if mode is None else mode)


@dataclass(frozen=True)
class Entry:
    """A certificate of the deployment, for `show`."""

    name: str
    path: Path
    facts: Facts
    problem: str | None  # beyond its dates

    def state(self, now: datetime, soon: timedelta = timedelta(days=RENEW_DAYS)) -> str:
        """valid, expiring, expired, early or broken."""
        if self.problem is not None:
            return "broken"
        if self.facts.not_after < now:
            return "expired"
        if self.facts.not_before > now:
            return "early"
        return "expiring" if self.facts.not_after - now < soon else "valid"


def kind_of(name: str) -> Kind:
    """By the name's beginning: `supernode-3` is a SuperNode. UsageError."""
    kind = KINDS.get(name.split("-")[0])
    if kind is None or _SOUND.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no role: begin its name with {', '.join(KINDS)} and go on with small letters, digits and "
            "dashes, for example supernode-berlin."
        )
    return kind


class Deployment:
    """The folder with a deployment's certificates."""

    def __init__(self, folder: Path, access: Access | None = None) -> None:
        self.folder = folder
        self.access = access or Access()

    # ---- authorities -------------------------------------------------------------------------------------------

    def has(self, authority: Authority) -> bool:
        """Whether its key or certificate is here."""
        return any(self._authority(authority, suffix).exists() for suffix in ("crt", "key"))

    def _authority(self, authority: Authority, suffix: str) -> Path:
        return self.folder / f"{authority.name}.{suffix}"

    def make_authority(self, authority: Authority, days: int) -> None:
        """A new CA. UsageError where there is one: what it vouched for would be worth nothing any more."""
        if self.has(authority):
            raise UsageError(f"{self._authority(authority, 'crt')} is there already.")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority.title)])
        built = (
            _begun(name, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(authority.usages), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._make_folder(self.folder)
        # Who may read the roles' keys may not therefore issue.
        _write(self._authority(authority, "key"), _private(key), Access())
        _write(self._authority(authority, "crt"), built.public_bytes(Encoding.PEM), None)

    def add_trusted(self, authority: Authority, certificate: Path) -> None:
        """Take over the certificate of a CA whose key is elsewhere. UsageError."""
        facts = _facts(certificate)
        if not facts.is_ca:
            raise UsageError(f"{certificate} is no CA's certificate.")
        self._make_folder(self.folder)
        _write(self._authority(authority, "crt"), certificate.read_bytes(), None)

    def _signer(self, authority: Authority) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        path = self._authority(authority, "key")
        try:
            key = load_pem_private_key(path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(self._authority(authority, "crt").read_bytes())
        except FileNotFoundError as error:
            raise UsageError(f"There is no {error.filename}; this has to be issued where that CA's key is.") from error
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"The CA {path} cannot be used: {error}.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"{path} is no key on an elliptic curve.")
        if key.public_key() != certificate.public_key():
            raise UsageError(f"{path} is not the key of {self._authority(authority, 'crt')}.")
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise UsageError(f"The CA {self._authority(authority, 'crt')} has expired; begin anew in another folder.")
        return key, certificate

    # ---- roles -------------------------------------------------------------------------------------------------

    def roles(self) -> list[str]:
        """The roles that have a certificate here."""
        if not self.folder.is_dir():
            return []
        found = (one.parent.name for one in self.folder.glob(f"*/{CERTIFICATE}"))
        return sorted((name for name in found if name.split("-")[0] in KINDS), key=_natural)

    def issue(self, role: str, names: Iterable[str], days: int) -> None:
        """A new key and certificate in the role's folder, in place of what was there. UsageError."""
        kind = kind_of(role)
        signer, issuer = self._signer(kind.issuer)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        building = (
            _begun(name, issuer.subject, key.public_key(), days, issuer)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([kind.usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
        )
        folder = self.folder / role
        self._make_folder(folder)
        # Each file is replaced in one step. Between two of them they do not fit together: a service that looks just
        # then keeps what it has and looks again (trellis_kit.tls, trellis_kit.channel).
        _write(folder / TRUSTED, self._certificate(kind.trusts), None)
        if kind.executors is not None:
            _write(folder / EXECUTORS, self._certificate(kind.executors), None)
        _write(folder / KEY, _private(key), self.access)
        _write(folder / CERTIFICATE, building.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM), None)

    def _certificate(self, authority: Authority) -> bytes:
        path = self._authority(authority, "crt")
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"The CA's certificate {path} is missing: {error.strerror}.") from error

    def renew(self, role: str, days: int) -> None:
        """A new key and certificate with the names of the one before. UsageError."""
        self.issue(role, _facts(self.folder / role / CERTIFICATE).names, days)

    def due(self, role: str, names: Iterable[str], within: timedelta) -> str | None:
        """Why the role's certificate has to be issued, or issued again; None while it is good. UsageError."""
        kind, folder = kind_of(role), self.folder / role
        path = folder / CERTIFICATE
        try:
            facts = certificates.read(path)
            problem = self._problem(path, kind)
        except FileNotFoundError:
            return "there is none"
        except ValueError:
            return "it is no certificate"
        if problem is not None:
            return problem
        if set(facts.names) != {str(_general(one).value) for one in names}:
            return "its names have changed"
        beside = [(TRUSTED, kind.trusts), *([] if kind.executors is None else [(EXECUTORS, kind.executors)])]
        for name, authority in beside:
            if not (folder / name).exists() or (folder / name).read_bytes() != self._certificate(authority):
                return "the CA beside it has changed"
        now = datetime.now(UTC)
        return "its end is near" if facts.not_after - now < within else None

    def put(self, place: str, content: bytes) -> None:
        """A file that is kept elsewhere, as it is; keys are for us alone. UsageError."""
        path = self.folder / place
        self._make_folder(path.parent)
        _write(path, content, Access() if path.suffix == ".key" else None)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise UsageError(f"The folder {folder} cannot be made: {error.strerror}.") from error

    # ---- looking -----------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Everything there is: the CAs, then the roles."""
        for authority in AUTHORITIES:
            path = self._authority(authority, "crt")
            if path.exists():
                yield Entry(authority.name, path, _facts(path), self._problem(path, None))
        for role in self.roles():
            path = self.folder / role / CERTIFICATE
            yield Entry(role, path, _facts(path), self._problem(path, kind_of(role)))

    def _problem(self, path: Path, kind: Kind | None) -> str | None:
        key_path = path.with_suffix(".key")
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        try:
            key = load_pem_private_key(key_path.read_bytes(), None)
            if key.public_key() != certificate.public_key():
                return f"{key_path} is the key of another certificate"
            if kind is not None:
                issuer = x509.load_pem_x509_certificate(self._certificate(kind.issuer))
                certificate.verify_directly_issued_by(issuer)
        except FileNotFoundError:
            return None if kind is None else f"{key_path} is missing"
        except PermissionError:
            return None  # for others than the keys' owner the dates are all there is to see
        except Exception as error:  # whatever cryptography finds wrong with it
            return f"it is not of the CA that is here ({error or type(error).__name__})"
        return None


def hosts(role: str, namespaces: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """The names by which a role's server is reached: this machine, Compose (`supernode-1`), Kubernetes, and `more`."""
    kind = kind_of(role)
    if kind.usage is _CLIENT:
        return [role]
    services = [role] if role == kind.name else [role, kind.name]
    names = [*services]
    for service in services:
        for namespace in namespaces:
            names += [f"{service}.{namespace}{end}" for end in ("", ".svc", ".svc.cluster.local")]
    return [*dict.fromkeys([*names, *_LOCAL, *more])]


# ---- pieces ------------------------------------------------------------------------------------------------------


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    within: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    if within is not None:
        end = min(end, within.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").rstrip(".").lower().split(".")
    if len(name) > 253 or not all(_SOUND.fullmatch(label) for label in labels):
        raise UsageError(f"{name!r} is neither a host name nor an address.")
    return x509.DNSName(name.rstrip(".").lower())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _facts(path: Path) -> Facts:
    try:
        return certificates.read(path)
    except OSError as error:
        raise UsageError(f"The certificate {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is no certificate (PEM).") from error


def _write(path: Path, content: bytes, secret: Access | None) -> None:
    """The file is there whole or as it was, and at no moment for more eyes than it shall be. `secret` None: for all."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            if secret is None:
                os.fchmod(file.fileno(), 0o644)
            else:
                secret.apply(file.fileno(), path)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def _natural(name: str) -> tuple[object, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name))
