"""`budget export`: an evidence bundle that stands without us.

evidence.json   every entry of the ledger, what follows from them, the hashes of the other files; signed
charges.csv     every charge, for a third accountant
evidence.html   the same for a reader of law: the guarantee, the policy, the figures, and what is not covered
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from secure_triplay import __version__, durable
from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.ledger.entries import Entry, Exported, canonical, in_words
from secure_triplay.ledger.evidence import charged_beyond_pld, charges_csv, statement
from secure_triplay.ledger.handingout import handing_out
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.reading import placed
from secure_triplay.ledger.store import Clock, utc_now
from secure_triplay.report.html import render

JSON_NAME, CSV_NAME, PAGE_NAME = "evidence.json", "charges.csv", "evidence.html"


def export(
    folder: Path,
    out: Path,
    identity: SigningIdentity,
    *,
    purpose: str = "audit",
    second_accountant: bool = True,
    clock: Clock = utc_now,
) -> Path:
    """Write the evidence bundle of the ledger in `folder` to the new folder `out`, whole or not at all.

    The export is itself an entry of the ledger, the next one after those in the bundle. Raises PrivacyError where the
    purpose cannot be recorded, RunError where `out` exists or cannot be written, and what `Ledger.open` and
    `statement` raise.
    """
    with in_words():
        exported = Exported(purpose=purpose)
    with (
        Ledger.open(folder, identity, clock=clock) as ledger,
        handing_out(out, lambda: ledger.record(exported)) as draft,
    ):
        with placed(ledger.chain.path):
            texts = _bundle(ledger.chain.entries, identity, second_accountant)
        for name, text in texts.items():
            durable.replace(draft / name, text.encode())
    return out


def _bundle(entries: tuple[Entry, ...], identity: SigningIdentity, second_accountant: bool) -> dict[str, str]:
    """The files of a bundle by name."""
    evidence = {
        "software": __version__,
        **statement(entries, identity.identity, second_accountant=second_accountant),
        "entries": [entry.to_json() for entry in entries],
    }
    texts = {CSV_NAME: charges_csv(evidence), PAGE_NAME: page(evidence)}
    signed = {"evidence": evidence, "files": {name: _sha256(text.encode()) for name, text in texts.items()}}
    signature = identity.sign(Purpose.EVIDENCE, canonical(signed))
    texts[JSON_NAME] = (
        json.dumps({**signed, "signature": signature.hex()}, indent=1, ensure_ascii=False) + "\n"
    )
    return texts


def page(evidence: dict[str, Any]) -> str:
    """`evidence.html` of a bundle: one file, no script, every name escaped."""
    return render("evidence.html.j2", e=evidence, beyond_pld=charged_beyond_pld(evidence))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
