"""What a budget allows: limits, what counts against each, and how many rounds still fit.

One study's parameters are fixed before its first release, so its releases compose as one history, by privacy
loss distributions. As soon as several studies count against a limit, later ones may have been chosen after
seeing earlier results: then a Renyi filter decides (Feldman and Zrnic 2021, theorem 4.3). A filter holds
for one Renyi order; here eight orders share delta evenly, so that whichever is best at the end may be used
(union bound).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from secure_triplay.errors import PrivacyError
from secure_triplay.ledger.entries import ChargeFields, PolicyAdopted
from secure_triplay.privacy import accounting
from secure_triplay.privacy.mechanisms import (
    MOST_STEPS,
    Charge,
    DpSgdCharge,
    GaussianCharge,
    SharedNoiseCharge,
    Unit,
    check_delta,
    check_epsilon,
)
from secure_triplay.privacy.renyi import renyi_epsilon

_MOST_PARTS = 100
"""Equal charges of more than this many times `MOST_STEPS` have no figure, and count as unbounded."""
FILTER_ORDERS = (2.5, 3.5, 5.0, 7.0, 10.0, 15.0, 25.0, 45.0)


@dataclass(frozen=True)
class Unprotected:
    """A release without differential privacy: no budget can bound it, and from it on every figure is
    infinite.
    """

    mechanism: ClassVar[str] = "none"
    unit: Unit = "record"


AnyCharge = Charge | Unprotected
_MECHANISMS: dict[str, type[AnyCharge]] = {
    kind.mechanism: kind for kind in (DpSgdCharge, GaussianCharge, SharedNoiseCharge, Unprotected)
}


@dataclass(frozen=True)
class Limits:
    """What may be learned about one `unit` at this site: epsilon per study, per calendar year and over all
    years.

    `max_units` is a public upper bound on the patients (or records) at the site, and delta at most
    1 / (100 x max_units). Raises PrivacyError for limits that cannot be kept or mean nothing.
    """

    epsilon_per_study: float
    epsilon_per_year: float
    delta: float
    max_units: int
    unit: Unit = "patient"
    epsilon_overall: float | None = None
    unsafe_unlimited: bool = False

    def __post_init__(self) -> None:
        if self.unit not in ("record", "patient"):
            raise PrivacyError(
                f"nobody can be protected per {self.unit!r}", where="unit", fix="choose record or patient"
            )
        check_delta(self.delta, self.max_units, self.unit)
        for value in (self.epsilon_per_study, self.epsilon_per_year, self.epsilon_overall):
            if value is not None:
                check_epsilon(value)
        if self.epsilon_per_study > self.epsilon_per_year:
            raise PrivacyError(
                f"epsilon {self.epsilon_per_study:g} per study does not fit into "
                f"{self.epsilon_per_year:g} per year",
                where="epsilon_per_study",
                fix="make the limit per study the smaller one",
            )

    @classmethod
    def of(cls, policy: PolicyAdopted) -> Limits:
        """The limits that a policy entry put in force."""
        return cls(**{field.name: getattr(policy, field.name) for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Spend:
    """One charge of the history: whose study, in which year, and whether something was released for it."""

    study: str
    year: int
    charge: AnyCharge
    settled: bool = False


@dataclass(frozen=True)
class Scope:
    """What counts against one limit: `name` in words, `kind` and `key` for machines."""

    kind: str
    key: str
    name: str
    limit: float | None
    spends: tuple[Spend, ...]

    @property
    def studies(self) -> frozenset[str]:
        """Studies with a charge in here."""
        return frozenset(spend.study for spend in self.spends)


@dataclass(frozen=True)
class Figures:
    """Epsilon of one history: by PLD, by the adaptive filter, and which decides. Infinite: no bound."""

    pld: float
    filtered: float
    adaptive: bool

    @property
    def deciding(self) -> float:
        """The filter's where parameters may have been chosen after seeing results, PLD's otherwise."""
        return self.filtered if self.adaptive else self.pld


@dataclass(frozen=True)
class Exceeded:
    """Why a charge is refused."""

    scope: Scope
    would_be: float
    now: float

    def words(self) -> str:
        """One sentence for an officer."""
        after = "no bound at all" if math.isinf(self.would_be) else f"epsilon {_up(self.would_be)}"
        return (
            f"it would bring {self.scope.name} to {after}, and the limit is {self.scope.limit:g} "
            f"(charged so far: {_up(self.now)})"
        )


def charge_to_fields(charge: AnyCharge) -> ChargeFields:
    """A charge as plain values, for an entry."""
    return {"mechanism": charge.mechanism, **dataclasses.asdict(charge)}


def charge_from_fields(fields: ChargeFields) -> AnyCharge:
    """The charge that `charge_to_fields` gave. Raises PrivacyError for anything else."""
    given: dict[str, Any] = dict(fields)
    try:
        charge = _MECHANISMS[given.pop("mechanism")](**given)
    except (KeyError, TypeError) as error:
        raise PrivacyError(
            f"no mechanism of this program has the charge {fields!r}",
            where="charge",
            fix="verify with the version of secure_triplay that wrote it",
        ) from error
    if charge_to_fields(charge) != fields:
        raise PrivacyError(
            f"the charge {fields!r} is incomplete", where="charge", fix="state every parameter"
        )
    return charge


def figures(spends: Iterable[Spend], delta: float) -> Figures:
    """Both figures of a history at `delta`. Raises PrivacyError for units that do not compose."""
    history = tuple(spends)
    adaptive = len({spend.study for spend in history}) > 1
    return _figures(frozenset(Counter(spend.charge for spend in history).items()), delta, adaptive)


def scopes(limits: Limits, spends: Iterable[Spend], study: str, year: int) -> tuple[Scope, ...]:
    """The limits that a release of `study` in `year` counts against, each with its history."""
    history = tuple(spends)
    return (
        Scope(
            "study",
            study,
            "this study",
            limits.epsilon_per_study,
            tuple(spend for spend in history if spend.study == study),
        ),
        Scope(
            "year",
            str(year),
            f"the year {year}",
            limits.epsilon_per_year,
            tuple(spend for spend in history if spend.year == year),
        ),
        Scope("overall", "", "this site's whole history", limits.epsilon_overall, history),
    )


def check(limits: Limits, spends: Iterable[Spend], new: Spend, times: int = 1) -> Exceeded | None:
    """None if `times` charges like `new` fit on top of the history, otherwise the first limit that they
    exceed.

    Raises PrivacyError for a charge of another unit than the limits': an epsilon per record says nothing
    about a patient with many.
    """
    if new.charge.unit != limits.unit and not isinstance(new.charge, Unprotected):
        raise PrivacyError(
            f"this site's budget is per {limits.unit}, and the study protects one {new.charge.unit}",
            where="privacy unit",
            fix=f"ask for a study with `unit: {limits.unit}`; budgets of two units do not add up",
        )
    if limits.unsafe_unlimited:
        return None
    for scope in scopes(limits, spends, new.study, new.year):
        if scope.limit is None:
            continue
        would_be = figures((*scope.spends, *(new,) * times), limits.delta).deciding
        if not would_be <= scope.limit:
            return Exceeded(scope, would_be, figures(scope.spends, limits.delta).deciding)
    return None


def rounds_that_fit(limits: Limits, spends: Iterable[Spend], new: Spend, most: int) -> int:
    """How many charges like `new`, up to `most`, fit on top of the history; it takes log2(most)
    accountings.
    """
    history = tuple(spends)
    fits, too_many = 0, most + 1
    while too_many - fits > 1:
        middle = most if fits == 0 and too_many == most + 1 else (fits + too_many) // 2
        if check(limits, history, new, middle) is None:
            fits = middle
        else:
            too_many = middle
    return fits


@lru_cache(maxsize=4096)
def _figures(history: frozenset[tuple[AnyCharge, int]], delta: float, adaptive: bool) -> Figures:
    """Equal charges are counted, not repeated: a study of 20 equal rounds costs one composition."""
    if any(isinstance(charge, Unprotected) for charge, _ in history):
        return Figures(math.inf, math.inf, adaptive)
    counted = [(charge, times) for charge, times in history if not isinstance(charge, Unprotected)]
    if any(_length(charge) * times > _MOST_PARTS * MOST_STEPS for charge, times in counted):
        return Figures(math.inf, math.inf, adaptive)
    parts = [part for charge, times in counted for part in _parts(charge, times)]
    if len(parts) == len(counted):
        first = accounting.epsilon(parts, delta)
    else:
        accounting.shares_noise(tuple(parts))  # refuses units that do not compose
        first = _bounded(renyi_epsilon(parts, delta))
    return Figures(first, filter_epsilon(parts, delta), adaptive)


def beyond_pld(charges: Iterable[AnyCharge]) -> bool:
    """Whether equal charges together have more than `MOST_STEPS` steps.

    Their loss distributions would take minutes to compose and more. Renyi accounting, an upper bound as well, takes no
    longer for more of them, so its figure stands where PLD's would.
    """
    counted = Counter(charge for charge in charges if not isinstance(charge, Unprotected))
    return any(_length(charge) * times > MOST_STEPS for charge, times in counted.items())


def filter_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of an adaptively chosen history: the least over `FILTER_ORDERS`, each with an equal share of
    delta.

    Feldman and Zrnic 2021 for one order; the union over orders is paid for by dividing delta.
    """
    history = tuple(charges)
    if accounting.shares_noise(history):
        return _bounded(renyi_epsilon(history, delta / len(FILTER_ORDERS), FILTER_ORDERS))
    merged = accounting.merged_charges(history)
    if not merged:
        return 0.0
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant  # here, as in `accounting`

    accountant = RdpAccountant(FILTER_ORDERS).compose(accounting.dp_event(merged))
    return _bounded(float(accountant.get_epsilon(delta / len(FILTER_ORDERS))))


def _parts(charge: Charge, times: int) -> list[Charge]:
    """A charge made `times` times as few charges that cost the same together, none longer than one may be."""
    total = _length(charge) * times
    lengths = [MOST_STEPS] * (total // MOST_STEPS) + ([total % MOST_STEPS] if total % MOST_STEPS else [])
    if isinstance(charge, DpSgdCharge | SharedNoiseCharge):
        return [dataclasses.replace(charge, steps=length) for length in lengths]
    return [dataclasses.replace(charge, releases=length) for length in lengths]


def _length(charge: Charge) -> int:
    return charge.releases if isinstance(charge, GaussianCharge) else charge.steps


def _bounded(figure: float) -> float:
    return figure if figure <= accounting.HOPELESS_EPSILON else math.inf


def _up(value: float) -> str:
    """Two decimals, rounded up, so that a figure never flatters."""
    return "without bound" if math.isinf(value) else f"{math.ceil(100 * value - 1e-6) / 100:.2f}"
