"""A second adapter for one site alone, out of updates that it has paid for.

    personal = published + RATE * sum_t u_t / (s * sqrt(T))

u_t is the update of round t as it came out of this site's training: float32 (n_params,), noise included, before
weights and rounding. T is the number of rounds in which the site trained. s is the public standard deviation of the
noise that one coordinate of one update carries (`constants.update_noise_std`), so that RATE is in units of one
coordinate of the adapter, whatever the clip norm.

It costs nothing. Each u_t is the output of a mechanism that was charged before its first gradient, and the charge of
all rounds together counts on all of them being known. What is computed from them and from the published adapter is
post-processing. So the published and the personal adapter together cost the epsilon of the published one.

Where the study pays for class counts (`personal_bias`), the logits get a bias besides, which no adapter could hold:

    bias_k = BIAS_WEIGHT * log(share of class k in the site's noised counts)

Weight 1 is the textbook's, for a model whose probabilities are right (Saerens, Latinne and Decaestecker 2002, equation
2.4). 1.5 was chosen on tuning seeds of Fashion-MNIST; `audits/methods` has what it wins there, and that it wins nothing
on PACS. With `personal_bias.in_training` the same bias stands in the logits while the site trains (logit adjustment:
Menon et al. 2021, arXiv 2007.07314, equation 10; by site, with another margin: Zhang et al. 2022, arXiv 2209.00189,
FedLC). The shared adapter then need not learn, from each site anew, how frequent its classes are.

There is no personal adapter where this does not hold:

    noise is shared     a site's own share carries less noise than the guarantee counts on (`noise: shared`)
    no privacy          updates carry no noise at all, and nothing was charged (`unsafe_dp_off`)

A round that the site declined or missed has no u_t and does not count in T. A round in which it trained counts
whether or not its upload came into the sum: it was charged.

A personal adapter is meant to stay at its site. It is tuned to the classes of this site, and may be worse than the
published one on other sites' records. Handing it on would say more of this one site than the study's adapter does,
though no more than its epsilon allows; and choosing which one to hand on by the site's held-back records would say
something of those, which nobody charged for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.config import Study
from secure_triplay.constants import class_count_rule, update_noise_std
from secure_triplay.errors import CryptoError, PrivacyError
from secure_triplay.privacy.counts import ClassCountRule, log_shares

FOLDER = "personal"
RATE = 0.002
"""How far a coordinate moves by T rounds whose updates are noise alone: this standard deviation."""
BIAS_WEIGHT = 1.5

_HEAD = struct.Struct(">QQQ")


@dataclass(frozen=True, eq=False)
class OwnUpdates:
    """The sum (n_params,) float64 of this site's own updates in `count` rounds, up to round `last` (0: none yet)."""

    total: NDArray[np.float64]
    count: int = 0
    last: int = 0

    @classmethod
    def none(cls, n_params: int) -> OwnUpdates:
        """The sum before the first round."""
        return cls(np.zeros(n_params))

    def add(self, update: NDArray[np.float32], round_number: int) -> OwnUpdates:
        """The sum with the update (n_params,) of a round; the same sum where that round, or a later one, is in it.

        Raises CryptoError for an update of another length, or one that is not finite.
        """
        if update.shape != self.total.shape or not np.isfinite(update).all():
            raise _refused("an update that is not this adapter's")
        if round_number <= self.last:
            return self
        return OwnUpdates(self.total + update.astype(np.float64), self.count + 1, round_number)

    def personal(self, published: NDArray[np.float32], noise_std: float) -> NDArray[np.float32]:
        """The personal adapter (n_params,) beside the published one (n_params,).

        `noise_std` is `constants.update_noise_std`. Raises PrivacyError without an update, or without noise.
        """
        if not self.count or not noise_std > 0 or published.shape != self.total.shape:
            raise PrivacyError(
                "there is no personal adapter without an update of this site's own, with noise of its own",
                where="personal adapter",
                fix="use the published adapter",
            )
        moved = published.astype(np.float64) + RATE * self.total / (noise_std * self.count**0.5)
        made: NDArray[np.float32] = moved.astype(np.float32)
        return made

    def to_bytes(self) -> bytes:
        """The sum for this site's vault, and for nothing else."""
        return _HEAD.pack(self.last, self.count, len(self.total)) + self.total.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes, n_params: int) -> OwnUpdates:
        """The sum that `to_bytes` gave. Raises CryptoError for anything else, and for another adapter's."""
        if len(content) != _HEAD.size + 8 * n_params:
            raise _refused("no sum of updates of this adapter")
        last, count, size = _HEAD.unpack_from(content)
        total = np.frombuffer(content, "<f8", offset=_HEAD.size).astype(np.float64)
        if size != n_params or not 0 < count <= last or not np.isfinite(total).all():
            raise _refused("no sum of updates of this adapter")
        return cls(total, count, last)


def why_none(study: Study) -> str | None:
    """Why sites of this study get no personal adapter; None where they get one."""
    if study.dp is None:
        return "the study runs without privacy, and its updates carry no noise"
    if study.shared_noise is not None:
        return "sites share their noise, and a site's own part carries less of it than the study's epsilon counts on"
    return None


@dataclass(frozen=True, eq=False)
class Personal:
    """What a site ends with for itself: `adapter` (n_params,), and `bias` (n_classes,) of the logits, if any."""

    adapter: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None


def personal_adapter(
    study: Study,
    own: OwnUpdates,
    published: NDArray[np.float32],
    note: Callable[..., None],
    counts: NDArray[np.float64] | None = None,
) -> Personal | None:
    """The personal adapter at the end of a study; None where there is none, and `note` is told why.

    `counts` (n_classes,) are the site's noised class counts, where the study has them made.
    """
    reason = why_none(study) or (None if own.count else "this site trained in no round")
    if reason is not None:
        note("no personal adapter", what=reason)
        return None
    adapter, rule = own.personal(published, update_noise_std(study)), class_count_rule(study)
    return Personal(adapter, None if rule is None or counts is None else class_bias(counts, rule))


def class_bias(counts: NDArray[np.float64], rule: ClassCountRule) -> NDArray[np.float32]:
    """The bias (n_classes,) of the logits that noised class counts (n_classes,) give."""
    return np.float32(BIAS_WEIGHT) * log_shares(counts, rule.noise_std)


def _refused(what: str) -> CryptoError:
    return CryptoError(
        f"the vault holds {what}",
        where="vault",
        fix="restore the site's folder as a whole; nothing was added",
    )
