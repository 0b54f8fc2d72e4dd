"""The study's own certificate authority: one CA, one server certificate, all P-384 and all plain TLS.

The CA vouches for the server to the sites, and for nobody else. Sites prove themselves by keys that are on the
roster, not by certificates. A SuperNode's local interface has a certificate of its own, made at the site.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure_triplay.errors import ConfigError

CA_DAYS = 3 * 365
SERVER_DAYS = 397
"""Browsers' own bound; a study that takes longer makes a new server certificate under the same CA."""


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def make_ca(name: str) -> Issued:
    """A certificate authority for one study, or for the local interface of one SuperNode."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name)
    builder = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _issued(builder.sign(key, hashes.SHA384()), key)


def make_server_certificate(ca: Issued, hosts: tuple[str, ...]) -> Issued:
    """A TLS server certificate for these hosts. Raises ConfigError without any, and for a CA that is none."""
    if not hosts:
        raise ConfigError(
            "a server certificate needs a host", where="hosts", fix="name the host that sites connect to"
        )
    try:
        authority = x509.load_pem_x509_certificate(ca.certificate)
        ca_key = serialization.load_pem_private_key(ca.key, None)
    except ValueError as error:
        raise ConfigError(
            "the authority's certificate or key is damaged",
            where="certificate authority",
            fix="restore the folder as a whole from its backup",
        ) from error
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    builder = (
        _builder(_name(hosts[0]), authority.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    return _issued(builder.sign(ca_key, hashes.SHA384()), key)


def expires(certificate: bytes) -> datetime.datetime:
    """When a PEM certificate ends, in UTC. Raises ConfigError if it is none."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError as error:
        raise ConfigError(
            "this is no certificate", where="certificate", fix="make or fetch the study's bundle again"
        ) from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a site's clock may be a little behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
