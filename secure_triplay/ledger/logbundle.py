"""The audit log of a party without a budget, such as the coordinator, as a signed file that verifies offline.

A site's log is its ledger, and leaves it as an evidence bundle. This is the same for everybody else: every entry,
signed, to be held against the sites' bundles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from secure_triplay import __version__, durable
from secure_triplay.crypto.identity import Identity, Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, RunError
from secure_triplay.ledger.entries import (
    Entry,
    Exported,
    Opened,
    PolicyAdopted,
    Refused,
    Reserved,
    Settled,
    StudyApproved,
    canonical,
    in_words,
    verify_chain,
)
from secure_triplay.ledger.handingout import handing_out
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.reading import read_handed_over, read_signed_json
from secure_triplay.ledger.store import Clock, utc_now

LOG_NAME = "log.json"
FORMAT = "secure_triplay audit log 1"
MAX_LOG_BYTES = 1 << 28
_OF_A_LEDGER = (PolicyAdopted, StudyApproved, Reserved, Settled, Refused)


@dataclass(frozen=True)
class VerifiedLog:
    """Whose log it is, and its entries; `site` is the party's name."""

    site: str
    identity: Identity
    chain: tuple[Entry, ...]


def export_log(
    folder: Path, out: Path, identity: SigningIdentity, *, purpose: str = "audit", clock: Clock = utc_now
) -> Path:
    """Write the log in `folder` to the new folder `out`; the export is itself an entry, the next one.

    Raises RunError where `out` exists or cannot be written, and what `AuditLog.open` raises.
    """
    with in_words():
        exported = Exported(purpose=purpose)
    with (
        AuditLog.open(folder, identity, clock=clock) as log,
        handing_out(out, lambda: log.record(exported)) as draft,
    ):
        content = {
            "format": FORMAT,
            "software": __version__,
            "public_key": identity.identity.public_bytes.hex(),
            "entries": [entry.to_json() for entry in log.chain.entries],
        }
        signature = identity.sign(Purpose.EVIDENCE, canonical(content))
        text = json.dumps({**content, "signature": signature.hex()}, indent=1) + "\n"
        durable.replace(draft / LOG_NAME, text.encode())
    return out


def verify_log(bundle: Path) -> VerifiedLog:
    """The log in a folder that `export_log` wrote: signature and every link verified.

    Raises RunError where it is missing or of another form, CryptoError where anything does not verify, PrivacyError
    where it is a site's ledger: as a log, none of the checks of its charges would be made.
    """
    path = bundle / LOG_NAME
    try:
        content = read_signed_json(path, read_handed_over(path, MAX_LOG_BYTES))
        signature = bytes.fromhex(content.pop("signature"))
        identity = Identity(bytes.fromhex(content["public_key"]))
        if content["format"] != FORMAT or not isinstance(content["entries"], list):
            raise ValueError("another format")
        message = canonical(content)
    except OSError as error:
        raise RunError(
            f"the log cannot be read: {error.strerror}",
            where=str(path),
            fix=f"a log is a folder with {LOG_NAME}",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            "this is no audit log of a version known here",
            where=str(path),
            fix="verify it with the version of secure_triplay that wrote it",
        ) from error
    try:
        identity.verify(signature, Purpose.EVIDENCE, message)
    except CryptoError as error:
        raise CryptoError(
            "the log was changed after it was signed", where=str(path), fix="ask its party for it again"
        ) from error
    entries = tuple(Entry.from_json(value) for value in content["entries"])
    verify_chain(entries, identity)
    charges = next((entry for entry in entries if isinstance(entry.body, _OF_A_LEDGER)), None)
    if charges is not None:
        raise PrivacyError(
            f"entry {charges.counter}, '{charges.kind}', is one of a site's ledger, and a log has none: as a log, "
            "nobody checks its budget",
            where=str(path),
            fix="ask the site for its evidence, which `secure-triplay budget export` writes",
        )
    opened = entries[0].body
    assert isinstance(opened, Opened)  # verify_chain refuses any other beginning
    return VerifiedLog(opened.party, identity, entries)
