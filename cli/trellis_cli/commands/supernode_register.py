"""Admit a SuperNode by its public key (an OpenSSH file, ecdsa-sha2-nistp256, 384 or 521)."""

import argparse
from pathlib import Path

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("public_key", type=Path, metavar="PUBLIC_KEY_FILE")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    pem = _public_pem(args.public_key.expanduser())
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        node_id = control.register_node(pem)
    out.say(f"SuperNode {node_id} is registered.")
    out.json({"success": True, "node-id": str(node_id)})
    return EXIT_OK


def _public_pem(file: Path) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        content = file.read_bytes()
        pem = content.lstrip().startswith(b"-----BEGIN")
        key = serialization.load_pem_public_key(content) if pem else serialization.load_ssh_public_key(content)
    except OSError as error:
        raise UsageError(f"The public key {file} cannot be read: {error.strerror}.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{file} holds no public key (make one with `ssh-keygen -t ecdsa -b 384` and give its .pub file)."
        ) from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise UsageError(f"{file} must hold a key on a NIST curve (`ssh-keygen -t ecdsa -b 384`).")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
