"""Looks a person through what usually keeps a federation from running, at a site or at the server.

Nothing is changed and no secret is shown; a connection that is tried carries no request but for the time.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from secure_triplay import __version__
from secure_triplay.errors import SecureTriplayError
from secure_triplay.federation import ca
from secure_triplay.federation.approval import require_trust_file
from secure_triplay.federation.bundle import package_sha256, require_own_app
from secure_triplay.federation.files import read_public
from secure_triplay.federation.join import (
    LOCAL_CERTIFICATE,
    LOCAL_KEY,
    SERVER_CA,
    TRUST,
    JoinedStudy,
    refusals,
)
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import StudyBundle
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.study import check_budget
from secure_triplay.policy import check_hours

FLOWER = "1.41.0"
LEAST_FREE_BYTES = 2 << 30
WARN_DAYS = 30
_RENEW_SERVER = "at the server: secure-triplay server renew"
_RENEW_OWN = (
    "remove local.key beside it, and join again with the same bundle: secure-triplay site join BUNDLE"
)
_JOIN_AGAIN = "join again with the same bundle: secure-triplay site join BUNDLE"
_RENEW_AUTHORITY = "it is not renewed: end the study before that day, or make a new one"
MOST_SKEW_S = 60.0
_TIMEOUT_S = 10.0

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do where it is not well."""

    what: str
    verdict: Verdict
    words: str
    fix: str = ""


def examine_site(site: SiteFolder, study: str | None = None) -> list[Finding]:
    """Everything at a site, from its folder outwards. Raises ConfigError where no study was joined."""
    joined = JoinedStudy.open(site, study)
    return [
        *_here(site.path, joined.bundle),
        _tried("keys", lambda: _keys(site)),
        _tried("ledger", lambda: _ledger(site)),
        _tried("policy", lambda: _policy(site, joined)),
        _tried("app", lambda: _app(site, joined)),
        _certificate(
            "own certificate", joined.folder / LOCAL_CERTIFICATE, _RENEW_OWN, joined.folder / LOCAL_KEY
        ),
        *reach(joined.bundle.server, joined.bundle.ca_certificate),
    ]


def examine_server(folder: ServerFolder) -> list[Finding]:
    """Everything at the server, from its folder outwards."""
    bundle = folder.bundle
    missing = [name for name in bundle.members if name not in folder.approvals()]
    confirmed = Finding(
        "confirmations",
        "wrong" if missing else "ok",
        f"missing: {', '.join(missing)}" if missing else f"all {len(bundle.members)} sites confirmed",
        "secure-triplay study confirm *.joined" if missing else "",
    )
    certificate_authority, certificate, key = folder.tls
    return [
        *_here(folder.path, bundle),
        confirmed,
        _tried("app", lambda: _own_app(bundle)),
        _certificate("server certificate", certificate, _RENEW_SERVER, key),
        _certificate("study's authority", certificate_authority, _RENEW_AUTHORITY),
        *reach(f"127.0.0.1:{bundle.server.rpartition(':')[2]}", bundle.ca_certificate),
    ]


def reach(server: str, ca_certificate: str) -> Iterable[Finding]:
    """Whether the server answers over TLS by the study's authority, until when its certificate holds, and its clock."""
    host, _, port = server.rpartition(":")
    context = ssl.create_default_context(cadata=ca_certificate)
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as line,
        ):
            peer = line.getpeercert(binary_form=True)
            line.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            head = line.recv(4096).decode(errors="replace")
    except ssl.SSLCertVerificationError as error:
        return [
            Finding(
                "server",
                "wrong",
                f"{server} shows a certificate that is not the study's: {error.verify_message}",
                "somebody stands between, or the address is another server's; start nothing before it is clear",
            )
        ]
    except (OSError, ValueError) as error:
        return [
            Finding(
                "server",
                "wrong",
                f"{server} cannot be reached: {error}",
                "see whether `secure-triplay server start` is running, and what firewalls let through",
            )
        ]
    assert peer is not None
    return [
        Finding("server", "ok", f"{server} answers, over TLS by the study's authority"),
        _expiry("its certificate", ca.expires(ssl.DER_cert_to_PEM_cert(peer).encode()), _RENEW_SERVER),
        _skew(head),
    ]


def _here(path: Path, bundle: StudyBundle) -> Iterable[Finding]:
    free = shutil.disk_usage(path).free
    flower, own = version("flwr"), package_sha256()
    same = bundle.package_sha256 == own
    return [
        Finding(
            "versions",
            "ok" if same and flower == FLOWER else "wrong",
            f"secure_triplay {__version__} ({own[:12]}…), Flower {flower}"
            + (
                "" if same else f"; the study is for {bundle.package_version} ({bundle.package_sha256[:12]}…)"
            ),
            "" if same and flower == FLOWER else "install the very package that the study was made with",
        ),
        Finding(
            "free disk",
            "ok" if free >= LEAST_FREE_BYTES else "warning",
            f"{free / 2**30:.1f} GiB at {path}",
            "" if free >= LEAST_FREE_BYTES else "make room: a full disk stops rounds, and loses none",
        ),
        Finding(
            "key epoch",
            "ok",
            f"{bundle.epoch}, with {', '.join(bundle.members)}; quorum {bundle.rules.quorum}",
        ),
    ]


def _ledger(site: SiteFolder) -> str:
    with Ledger.open(site.ledger, None) as ledger:
        return f"{len(ledger.chain.entries)} entries, all verified"


def _policy(site: SiteFolder, joined: JoinedStudy) -> str:
    policy = site.policy
    with Ledger.open(site.ledger, None) as ledger:
        budget = check_budget(policy, ledger.books.limits)
    found = [*refusals(policy, joined.study, joined.bundle), budget, check_hours(policy, datetime.now(UTC))]
    for refusal in filter(None, found):
        raise _NotWellError(str(refusal))
    return f"{policy.policy} allows the study, now"


def _app(site: SiteFolder, joined: JoinedStudy) -> str:
    require_trust_file(joined.folder / TRUST, site.enrolment.approval_key)
    if (
        read_public(joined.folder / SERVER_CA, "authority", _JOIN_AGAIN)
        != joined.bundle.ca_certificate.encode()
    ):
        raise _NotWellError("server-ca.crt is not the study's authority", fix=_JOIN_AGAIN)
    return _own_app(joined.bundle)


def _own_app(bundle: StudyBundle) -> str:
    require_own_app(bundle.app_bytes)
    return f"{bundle.app_sha256[:16]}…, made of the package that is installed here"


def _certificate(what: str, file: Path, renewal: str, key: Path | None = None) -> Finding:
    try:
        ends = ca.expires(file.read_bytes())
        if key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key)
            except ssl.SSLError:
                return Finding(what, "wrong", f"{key.name} is damaged, or not its key", renewal)
        return _expiry(what, ends, renewal)
    except (OSError, SecureTriplayError) as error:
        return Finding(what, "wrong", str(error), "make the folder again, or restore it from its backup")


def _expiry(what: str, ends: datetime, renewal: str) -> Finding:
    days = (ends - datetime.now(UTC)).days
    verdict: Verdict = "wrong" if days < 0 else "warning" if days < WARN_DAYS else "ok"
    return Finding(
        what,
        verdict,
        f"holds until {ends:%Y-%m-%d} ({days} days)",
        "" if verdict == "ok" else renewal,
    )


def _skew(head: str) -> Finding:
    dates = [line[5:].strip() for line in head.splitlines() if line.lower().startswith("date:")]
    try:
        off = time.time() - parsedate_to_datetime(dates[0]).timestamp()
    except (IndexError, ValueError, TypeError):
        return Finding("clock", "warning", "the server does not tell its time", "compare the clocks by hand")
    well = abs(off) <= MOST_SKEW_S
    return Finding(
        "clock",
        "ok" if well else "warning",
        f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server's",
        "" if well else "set the clock by NTP: peers refuse to countersign where it is a day off",
    )


class _NotWellError(SecureTriplayError):
    """Something is not well, in words."""


def _keys(site: SiteFolder) -> str:
    site.require_keys()
    return (
        f"{site.name}, enrolled as {site.enrolment.fingerprint}; evidence is signed as "
        f"{site.identity.identity.fingerprint}"
    )


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except SecureTriplayError as error:
        return Finding(what, "wrong", error.what, error.fix)
