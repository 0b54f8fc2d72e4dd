"""`audit verify`: is a bundle what it says it is? Offline, from the bundle alone.

It shows that the bundle was signed by the key it names, that its entries are one unbroken chain of that key,
that every figure follows from the charges, and that table and page say what the entries say (the page only where this
version made it: another may word it otherwise). Whose key it is, and whether others hold a later head, are the two
questions that need somebody else: `Verified` names both. Who has the site's fingerprint answers the first.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_triplay import __version__
from secure_triplay.crypto.identity import Identity, Purpose
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError, RunError
from secure_triplay.ledger.entries import Entry, canonical, verify_chain
from secure_triplay.ledger.evidence import FORMAT, charges_csv, require_bounded, statement
from secure_triplay.ledger.export import CSV_NAME, JSON_NAME, PAGE_NAME, page
from secure_triplay.ledger.reading import read_handed_over, read_signed_json

MAX_BUNDLE_BYTES = 1 << 28
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_TOLERANCE = 1e-6  # relative: other processors round otherwise


@dataclass(frozen=True)
class Verified:
    """What was verified, and what only other people can confirm."""

    site: str
    identity: Identity
    entries: int
    charges: int
    figures: tuple[dict[str, Any], ...]
    rollback: str
    notes: tuple[str, ...]
    chain: tuple[Entry, ...]


def read_fingerprint(text: str) -> str:
    """A key's fingerprint as a person gives it, spaced or not, as `Identity.fingerprint` has it. Raises ConfigError."""
    digits = "".join(text.split()).lower()
    if not _FINGERPRINT.fullmatch(digits):
        raise ConfigError(
            f"{text!r} is no fingerprint of a key",
            where="fingerprint",
            fix="give its eight groups of four digits from 0 to f in quotes, as `site init` and `doctor` print them",
        )
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def require_signer(identity: Identity, signed_as: frozenset[str], path: Path) -> None:
    """Raises CryptoError where fingerprints are given, and the signer's is none of them."""
    if signed_as and identity.fingerprint not in signed_as:
        raise CryptoError(
            f"this is signed by {identity.fingerprint}, and {' or '.join(sorted(signed_as))} was expected",
            where=str(path),
            fix="do not rely on it before its party has told you, out of band, what it signs evidence as; an enrolment "
            "has another fingerprint",
        )


def verify(bundle: Path, *, signed_as: frozenset[str] = frozenset()) -> Verified:
    """Verify an evidence bundle; return what holds, or raise.

    `signed_as` are fingerprints that the auditor has from elsewhere: then it has to be signed by one of these keys.

    Raises:
        RunError: a file is missing or is no bundle.
        CryptoError: signature, chain, receipts or files do not verify.
        PrivacyError: a figure is not what the charges give, or the entries break a rule of the ledger.
    """
    signed, texts = _read(bundle)
    evidence, identity = _signed_by(signed, signed_as, bundle)
    for name, text in texts.items():
        if signed["files"].get(name) != hashlib.sha256(text.encode()).hexdigest():
            raise CryptoError(
                f"{name} is not the file that was signed",
                where=str(bundle / name),
                fix="ask the site for the bundle again",
            )
    entries = tuple(Entry.from_json(value) for value in evidence["entries"])
    verify_chain(entries, identity)
    derived = statement(entries, identity, second_accountant=evidence["second_accountant"])
    notes = []
    claimed = {key: value for key, value in evidence.items() if key not in ("software", "entries")}
    if evidence["software"] != __version__:  # each version may word it better; all figures are compared
        limits = "; ".join(limit["title"] for limit in derived["not_covered"])
        derived["not_covered"] = claimed.get("not_covered")
        notes.append(
            f"Page and limits were worded by version {evidence['software']}, and not compared. By these entries, not "
            f"covered are: {limits}."
        )
    different = _difference(derived, claimed, "evidence")
    if different:
        raise PrivacyError(
            f"the bundle claims what its charges do not give: {different}",
            where=str(bundle / JSON_NAME),
            fix="do not rely on any figure of it; ask the site for a new export",
        )
    require_bounded(evidence)
    if texts[CSV_NAME] != charges_csv(evidence):
        raise PrivacyError(
            "the table of charges is not what the entries say",
            where=str(bundle / CSV_NAME),
            fix="rely on evidence.json alone, and ask the site why",
        )
    if evidence["software"] == __version__ and texts[PAGE_NAME] != page(evidence):
        raise PrivacyError(
            "the page does not say what the entries say",
            where=str(bundle / PAGE_NAME),
            fix="rely on evidence.json alone, and ask the site why",
        )
    if signed_as:
        notes.append(
            f"Signed by {identity.fingerprint}: this was compared with the fingerprint given, and is the same."
        )
    else:
        notes.append(
            f"Signed by {identity.fingerprint}: compare this with what the site signs evidence as "
            "(`site init` and `doctor` say it there), out of band, and give that as --signed-as."
        )
    return Verified(
        evidence["site"],
        identity,
        len(entries),
        len(evidence["charges"]),
        tuple(evidence["figures"]),
        _rollback(evidence["anchors"]),
        tuple(notes),
        entries,
    )


def _rollback(anchors: dict[str, Any]) -> str:
    known = anchors["peers"]
    if not known:
        return "rollback not excluded: nobody countersigned this ledger"
    if anchors["charges_after"]:
        return (
            f"rollback excluded up to entry {anchors['last_counter']} by {len(known)} others; "
            f"not excluded for the {anchors['charges_after']} charges after it"
        )
    return (
        f"countersigned up to entry {anchors['last_counter']} by {len(known)} others; rollback is excluded if that is "
        "the last head that they hold"
    )


def _read(bundle: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The signed JSON and the other files as text. Raises RunError."""
    names = (JSON_NAME, CSV_NAME, PAGE_NAME)
    try:
        contents, left = {}, MAX_BUNDLE_BYTES
        for name in names:
            contents[name] = read_handed_over(bundle / name, left)
            left -= len(contents[name])
        signed = read_signed_json(bundle / JSON_NAME, contents.pop(JSON_NAME))
        texts = {name: content.decode() for name, content in contents.items()}
    except OSError as error:
        raise RunError(
            f"the bundle cannot be read: {error.strerror}",
            where=str(error.filename or bundle),
            fix=f"a bundle is a folder with {', '.join(names)}",
        ) from error
    except UnicodeDecodeError as error:
        raise RunError(
            f"the bundle is not what an export writes: {error}",
            where=str(bundle),
            fix="ask the site for it again",
        ) from error
    if not (
        isinstance(signed, dict)
        and set(signed) == {"evidence", "files", "signature"}
        and isinstance(signed["evidence"], dict)
        and isinstance(signed["files"], dict)
        and set(signed["files"]) == {CSV_NAME, PAGE_NAME}
        and signed["evidence"].get("format") == FORMAT
        # any other word would switch the check of its figures off
        and isinstance(signed["evidence"].get("second_accountant"), bool)
    ):
        raise RunError(
            "this is no evidence bundle of a version known here",
            where=str(bundle / JSON_NAME),
            fix="verify it with the version of secure_triplay that wrote it",
        )
    return signed, texts


def _signed_by(
    signed: dict[str, Any], signed_as: frozenset[str], bundle: Path
) -> tuple[dict[str, Any], Identity]:
    """The evidence and the key that signed it. Raises CryptoError."""
    evidence = signed["evidence"]
    try:
        identity = Identity(bytes.fromhex(evidence["public_key"]))
        signature = bytes.fromhex(signed["signature"])
        content = canonical({"evidence": evidence, "files": signed["files"]})
        if not isinstance(evidence["entries"], list) or not isinstance(evidence["figures"], list):
            raise ValueError("lists are due")
        evidence["software"], evidence["anchors"], evidence["site"]
    except (KeyError, TypeError, ValueError) as error:
        raise CryptoError(
            "the bundle names no key or has no signature",
            where=str(bundle / JSON_NAME),
            fix="ask the site for it again",
        ) from error
    require_signer(identity, signed_as, bundle / JSON_NAME)
    try:
        identity.verify(signature, Purpose.EVIDENCE, content)
    except CryptoError as error:
        raise CryptoError(
            "the bundle was changed after it was signed",
            where=str(bundle / JSON_NAME),
            fix="ask the site for it again",
        ) from error
    return evidence, identity


def _difference(ours: Any, theirs: Any, where: str) -> str:
    """Where two plain values differ, beyond the last digits of a figure; empty if nowhere."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if set(ours) != set(theirs):
            return f"{where} has other fields"
        return next(filter(None, (_difference(ours[key], theirs[key], f"{where}.{key}") for key in ours)), "")
    if isinstance(ours, (list, tuple)) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"{where} has {len(theirs)} items, and {len(ours)} follow from the entries"
        return next(
            filter(
                None,
                (
                    _difference(a, b, f"{where}[{i}]")
                    for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
                ),
            ),
            "",
        )
    if isinstance(ours, float) and isinstance(theirs, float):
        close = abs(ours - theirs) <= _TOLERANCE * max(1.0, abs(ours))
        return "" if close else f"{where} is stated as {theirs:.6g}, and {ours:.6g} follows from the charges"
    return (
        "" if type(ours) is type(theirs) and ours == theirs else f"{where} is stated as {str(theirs)[:80]!r}"
    )
