"""A certificate of yesterday, by the authority of a federation."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from cryptography.x509.oid import NameOID
from nvflare.lighter.utils import Identity, generate_cert, serialize_cert


def expire(path: Path, authority: Path) -> None:
    """Put in the place of a certificate one that is the same but for its dates, and as well signed."""
    signer = json.loads(next(authority.rglob("cert.json")).read_text())
    root, own = load_pem_x509_certificate(signer["root_cert"].encode()), load_pem_x509_certificate(path.read_bytes())
    key = load_pem_private_key(signer["root_pri_key"].encode(), None)
    assert isinstance(key, RSAPrivateKey)
    issuer, subject = (each.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value for each in (root, own))
    end = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = generate_cert(
        Identity(subject), Identity(issuer), key, own.public_key(),
        not_valid_before=end - datetime.timedelta(days=1), not_valid_after=end,
    )  # fmt: skip
    path.write_bytes(serialize_cert(made))
