"""From a study's file to what a ledger needs: what it releases; and from a policy file to its limits."""

from __future__ import annotations

from secure_triplay.config import Study
from secure_triplay.constants import class_count_rule, count_rule, round_rule, share_rule
from secure_triplay.errors import ConfigError
from secure_triplay.ledger.books import Release
from secure_triplay.ledger.budget import Limits, Unprotected
from secure_triplay.ledger.ledger import TRAINING
from secure_triplay.policy import Refusal, SitePolicy

PUBLISHED, CLASS_COUNTS = "published accuracy", "class counts"


def training_release(study: Study) -> Release:
    """The training rounds of a study: what each costs, and how many there are.

    A study without differential privacy has a charge too: one that no budget bounds. Raises PrivacyError where no
    noise keeps the study within its epsilon.
    """
    rounds = study.training.rounds
    if study.dp is None:
        return Release(TRAINING, Unprotected(), rounds)
    return Release(TRAINING, (share_rule(study) or round_rule(study)).charge, rounds)


def count_release(study: Study) -> Release | None:
    """The release of the published accuracy, after the last training round; None where the study has none."""
    rule = count_rule(study)
    return None if rule is None else Release(PUBLISHED, rule.charge, 1)


def class_count_release(study: Study) -> Release | None:
    """What a bias of a site's own logits costs; None where the study gives it none."""
    rule = class_count_rule(study)
    return None if rule is None else Release(CLASS_COUNTS, rule.charge, 1)


def study_releases(study: Study) -> tuple[Release, ...]:
    """Everything that a study charges: what a site approves. What rounds release comes first, in their order."""
    counts = (count_release(study), class_count_release(study))
    return (training_release(study), *(release for release in counts if release is not None))


def simulated_limits(study: Study) -> Limits:
    """What a simulated site allows: the study's own epsilon and delta, and nothing beyond it."""
    dp = study.dp
    if dp is None:
        return Limits(1.0, 1.0, delta=1e-6, max_units=10_000, unit="record", unsafe_unlimited=True)
    return Limits(dp.epsilon, dp.epsilon, delta=dp.delta, max_units=dp.max_units_per_site, unit=dp.unit)


def policy_limits(policy: SitePolicy) -> Limits:
    """The limits that a site's policy puts in force: its smallest unit, and delta for the most that it may hold.

    Raises ConfigError where the policy does not say how many patients (or records) there may be at most.
    """
    unit = policy.smallest_privacy_unit
    most = policy.delta.most_patients if unit == "patient" else policy.delta.most_records
    if most is None:
        raise ConfigError(
            f"the policy does not say how many {unit}s this site may hold at most, so delta cannot be chosen",
            where=f"delta.most_{unit}s",
            fix=f"state a round public upper bound on the {unit}s here; it is no count",
        )
    return Limits(
        policy.epsilon_per_study,
        policy.epsilon_per_year,
        delta=1 / (policy.delta.times_patients * most),
        max_units=most,
        unit=unit,
    )


def check_budget(policy: SitePolicy, limits: Limits) -> Refusal | None:
    """A refusal where the limits in force in the ledger allow more than the policy does by now.

    Raises ConfigError as `policy_limits` does.
    """
    own = policy_limits(policy)
    for name in ("epsilon_per_study", "epsilon_per_year", "delta"):
        kept, allowed = getattr(limits, name), getattr(own, name)
        if kept > allowed:
            return Refusal(
                name,
                f"The ledger still counts against {name} {kept:g}",
                f"the policy allows {allowed:g} by now",
                "A person puts the policy in force: secure-triplay budget adopt --site DIR --policy POLICY "
                "--approved-by NAME.",
            )
    return None
