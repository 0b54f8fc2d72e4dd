"""Several evidence bundles held against each other: of one site over time, and of sites that met in a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from secure_triplay.crypto.identity import Identity
from secure_triplay.errors import RunError
from secure_triplay.ledger.entries import Entry, Opened
from secure_triplay.ledger.export import CSV_NAME, JSON_NAME, PAGE_NAME
from secure_triplay.ledger.log import Disagreement, cross_check
from secure_triplay.ledger.logbundle import LOG_NAME, VerifiedLog, verify_log
from secure_triplay.ledger.reading import placed
from secure_triplay.ledger.verify import Verified, require_signer, verify

_NOT_TO_BE_RELIED_ON = (
    "rely on nothing in this bundle; ask its party for another one, and compare that with what other parties recorded "
    "of it"
)


class Bundle(Protocol):
    """Any verified bundle: whose, under which key, and its chain."""

    @property
    def site(self) -> str: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def chain(self) -> tuple[Entry, ...]: ...


def verify_any(bundle: Path, *, signed_as: frozenset[str] = frozenset()) -> Verified | VerifiedLog:
    """A site's evidence, or the log of another party, verified. Raises what `verify` and `verify_log` raise.

    Where `signed_as` names fingerprints, either has to be signed by one of these keys. Raises RunError for a folder
    with both: whichever was looked at, the other one would pass for verified.
    """
    log = (bundle / LOG_NAME).exists()
    if log and any((bundle / name).exists() for name in (JSON_NAME, CSV_NAME, PAGE_NAME)):
        raise RunError(
            "this folder holds a site's evidence and a party's log",
            where=str(bundle),
            fix="put each into a folder of its own, as it was exported",
        )
    with placed(bundle / (LOG_NAME if log else JSON_NAME), _NOT_TO_BE_RELIED_ON):
        if not log:
            return verify(bundle, signed_as=signed_as)
        verified = verify_log(bundle)
    require_signer(verified.identity, signed_as, bundle / LOG_NAME)
    return verified


def replaces(bundle: Bundle) -> str:
    """Why a chain was begun in place of a lost one, by whoever began it; empty where it replaces none."""
    opened = bundle.chain[0].body
    return opened.replaces if isinstance(opened, Opened) else ""


def require_each_once(paths: Iterable[Path], bundles: Iterable[Bundle]) -> None:
    """Return nothing if no two of these verified bundles are one: held against itself, each agrees. Raises RunError."""
    seen: dict[bytes, Path] = {}
    for path, bundle in zip(paths, bundles, strict=True):
        head = bundle.chain[
            -1
        ].head  # no two chains end in one, and an export is an entry of the chain after it
        if head in seen:
            raise RunError(
                "the same bundle is given twice, and agrees with itself whatever it says",
                where=f"{seen[head]} and {path}",
                fix="give each bundle once, and beside it those of other parties",
            )
        seen[head] = path


def compare(bundles: Iterable[Bundle]) -> tuple[Disagreement, ...]:
    """Where verified bundles contradict one another; empty if nowhere.

    Bundles of one key have to be one chain at different lengths: anything else is a fork, a rewritten ledger or
    an older copy that went on. One name under two keys is somebody who passes for another, and one key under two
    names has two ledgers, of which each shows a part. The longest chain of
    each site is then held against those of the others (`cross_check`).
    """
    longest: dict[str, Bundle] = {}
    found: list[Disagreement] = []
    for bundle in sorted(bundles, key=lambda each: len(each.chain)):
        before = longest.get(bundle.site)
        if before is not None and before.identity != bundle.identity:
            found.append(
                Disagreement(
                    (bundle.site,),
                    f"two keys sign as {bundle.site}: {before.identity.fingerprint} and "
                    f"{bundle.identity.fingerprint}",
                )
            )
        elif before is not None and bundle.chain[: len(before.chain)] != before.chain:
            at = next(
                number
                for number, (a, b) in enumerate(zip(before.chain, bundle.chain, strict=False), 1)
                if a != b
            )
            found.append(
                Disagreement(
                    (bundle.site,),
                    f"two bundles of {bundle.site} differ from entry {at} on: its ledger was copied or rewritten",
                )
            )
        longest[bundle.site] = bundle
    names: dict[Identity, list[str]] = {}
    for site, each in longest.items():
        names.setdefault(each.identity, []).append(site)
    found += [
        Disagreement(tuple(same), f"one key, {key.fingerprint}, signs as {' and as '.join(same)}")
        for key, same in names.items()
        if len(same) > 1
    ]
    logs = {site: each.chain for site, each in longest.items()}
    return (*found, *cross_check(logs, {site: each.identity for site, each in longest.items()}))
