"""A person starts a site's ledger, once, under a policy, or puts another in force; and where a folder's ledgers are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secure_triplay.crypto.keyfile import load_identity
from secure_triplay.errors import RunError
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.ledger import TRACE, Ledger, leave_trace
from secure_triplay.ledger.persons import require_person, require_reason
from secure_triplay.ledger.study import policy_limits
from secure_triplay.policy import ReadPolicy, read_policy

LEDGER = "ledger"


def start(site: Path, policy_file: Path, *, name: str, approved_by: str, replaces: str = "") -> Limits:
    """Start the ledger in `site`/ledger under the limits of a policy file, signed by that site's own key.

    Beside the key a trace stays, which tells a lost ledger from none for as long as the site's folder is there. Raises
    ConfigError for a policy that gives no limits, and where nobody is named or a reason says nothing, CryptoError where
    the site has no key, RunError where a ledger is there, or was lost and `replaces` gives no reason.
    """
    require_person(approved_by, "--approved-by")
    if replaces:
        require_reason(replaces, "--replaces")
    policy = read_policy(policy_file)
    limits = policy_limits(policy.rules)
    with Ledger.create(
        site / LEDGER,
        load_identity(site),
        site=name,
        limits=limits,
        approved_by=approved_by,
        policy=policy.rules.policy,
        policy_sha256=policy.sha256,
        replaces=replaces,
    ):
        leave_trace(site)
    return limits


def adopt(site: Path, policy: ReadPolicy, *, approved_by: str) -> Limits:
    """Put the limits of a policy, as it was read, in force in the ledger of `site`, for every charge from now on.

    Raises ConfigError for a policy that gives no limits and where nobody is named, RunError where there is no ledger,
    PrivacyError for another unit than the ledger's.
    """
    require_person(approved_by, "--approved-by")
    limits = policy_limits(policy.rules)
    with Ledger.open(site / LEDGER, load_identity(site)) as ledger:
        ledger.adopt(
            limits,
            approved_by=approved_by,
            policy=policy.rules.policy,
            policy_sha256=policy.sha256,
        )
    return limits


def site_folders(given: Iterable[Path]) -> list[Path]:
    """The folders with a ledger, or a lost one: each given one, or those in its sites/. Raises RunError without any."""
    found = []
    for folder in given:
        inside = sorted({path.parent for name in (LEDGER, TRACE) for path in folder.glob(f"sites/*/{name}")})
        here = (folder / LEDGER).is_dir() or (folder / TRACE).exists()
        if not here and not inside:
            raise RunError(
                "there is no privacy ledger here",
                where=str(folder),
                fix="give a site's folder with --site, or the folder of a run; "
                "`secure-triplay budget start` starts a ledger",
            )
        found += [folder] if here else inside
    return found
