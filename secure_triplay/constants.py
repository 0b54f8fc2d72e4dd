"""A study's public constants: its noise, charges, masks and codec, as they follow from the study file alone.

They need neither torch nor a site's data, so that anybody can check them in a moment.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from secure_triplay.config import DpOn, Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.masking.parameters import MaskingParameters
from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.errors import ConfigError
from secure_triplay.privacy.counts import ClassCountRule, CountRule
from secure_triplay.privacy.mechanisms import Charge, DpSgd, GaussianCharge
from secure_triplay.privacy.shares import ShareRule


@lru_cache(maxsize=8)
def noise_multiplier(study: Study) -> float:
    """The noise that keeps a whole study within its epsilon.

    Raises PrivacyError where none does, and ConfigError without privacy.
    """
    from secure_triplay.privacy.accounting import noise_multiplier_for

    dp = _privacy(study)
    if study.shared_noise is not None:
        from secure_triplay.privacy.renyi import shared_noise_multiplier_for

        longest = study.shared_noise.l2_sensitivity
        return shared_noise_multiplier_for(dp.epsilon, dp.delta, dp.sampling_rate, study.total_steps, longest)
    return noise_multiplier_for(dp.epsilon, dp.delta, dp.sampling_rate, study.total_steps, counts_of(study))


def count_rule(study: Study) -> CountRule | None:
    """How the published accuracy's counts are noised; None where the study publishes none."""
    if study.published_accuracy is None or study.dp is None:
        return None
    return CountRule(
        noise_multiplier=study.published_accuracy.noise_multiplier,
        records_per_unit=study.dp.records_per_unit,
        most_units=study.dp.max_units_per_site,
        unit=study.dp.unit,
    )


def class_count_rule(study: Study) -> ClassCountRule | None:
    """How a site's classes are counted for a bias of its own logits; None where the study gives it none."""
    if study.personal_bias is None or study.dp is None:
        return None
    return ClassCountRule(
        noise_multiplier=study.personal_bias.noise_multiplier,
        records_per_unit=study.dp.records_per_unit,
        unit=study.dp.unit,
    )


def counts_of(study: Study) -> tuple[GaussianCharge, ...]:
    """What a site is charged for besides training."""
    return tuple(rule.charge for rule in (count_rule(study), class_count_rule(study)) if rule is not None)


def round_rule(study: Study) -> DpSgd:
    """DP-SGD of one round at one site: public constants only. Raises PrivacyError or ConfigError."""
    dp, training = _privacy(study), study.training
    require_own_noise(study)
    return DpSgd(
        noise_multiplier=noise_multiplier(study),
        l2_clip_norm=dp.l2_clip_norm,
        sampling_rate=dp.sampling_rate,
        expected_batch_size=dp.expected_batch_size,
        steps=training.steps_per_round,
        learning_rate=training.learning_rate,
        physical_batch_size=training.physical_batch_size,
        unit=dp.unit,
        max_records_per_patient=dp.max_records_per_patient,
    )


def update_noise_std(study: Study) -> float:
    """Standard deviation of the noise in one coordinate of one site's update of a round, in units of the adapter.

    It follows from public constants. Raises PrivacyError, and ConfigError where an update has no noise of its own.
    """
    rule = round_rule(study)
    noise_std: float = rule.learning_rate * rule.noise_std / rule.expected_batch_size * rule.steps**0.5
    return noise_std


def charge_of_rounds(study: Study, rounds: int) -> Charge:
    """What a site is charged for so many training rounds. Raises PrivacyError, and ConfigError without privacy."""
    _privacy(study)
    rule = share_rule(study) or round_rule(study)
    return replace(rule.charge, steps=rounds * study.training.steps_per_round)


def charges_of(study: Study) -> tuple[Charge, ...]:
    """What a site is charged for a whole study. Raises PrivacyError, and ConfigError without privacy."""
    return (charge_of_rounds(study, study.training.rounds), *counts_of(study))


def epsilon_of_study(study: Study) -> float:
    """Epsilon that a site has spent at the end of a study. Raises PrivacyError, and ConfigError without privacy."""
    from secure_triplay.privacy.accounting import epsilon

    return epsilon(charges_of(study), _privacy(study).delta)


def _privacy(study: Study) -> DpOn:
    """The study's privacy rule. Raises ConfigError where it runs without."""
    if study.dp is None:
        raise ConfigError("this study runs without privacy", where="privacy", fix="remove unsafe_dp_off")
    return study.dp


def require_own_noise(study: Study) -> None:
    """Return nothing unless sites share their noise: then no step of one site is private. Raises ConfigError."""
    if study.shared_noise is not None:
        raise ConfigError(
            "a site's step has no noise of its own here: sites share it, and step on the sum",
            where="privacy.noise",
            fix="take `noise: local` for what looks at one site's own step",
        )


def share_rule(study: Study) -> ShareRule | None:
    """How a site makes its part of a sum whose noise is shared; None where each site's noise is its own.

    Raises PrivacyError, and ConfigError for masks that cannot be had, or that count on no colluder.
    """
    shared, dp, masking = study.shared_noise, study.dp, masks_for(study)
    if shared is None or dp is None or masking is None:
        return None
    return ShareRule(
        noise_multiplier=noise_multiplier(study),
        l2_clip_norm=dp.l2_clip_norm,
        clip_steps=shared.clip_steps,
        l2_sensitivity=shared.l2_sensitivity,
        sampling_rate=dp.sampling_rate,
        expected_batch_size=dp.expected_batch_size,
        learning_rate=study.training.learning_rate,
        physical_batch_size=study.training.physical_batch_size,
        honest_shares=masking.fewest_honest_survivors,
        colluders=masking.colluders,
    )


def epsilon_of_shares(study: Study, honest_shares: int) -> float:
    """Epsilon of a study with shared noise against who leaves so many shares of a sum unknown; infinite: no bound.

    With one: a site's own share alone, against all others together or where masks do not hold.
    """
    from secure_triplay.privacy.accounting import epsilon

    rule, dp = share_rule(study), study.dp
    if rule is None or dp is None:
        raise ConfigError("this study shares no noise", where="privacy.noise", fix="state `noise: shared`")
    return epsilon([replace(rule.charged_for(honest_shares), steps=study.total_steps)], dp.delta)


def masks_for(study: Study, n_sites: int | None = None) -> MaskingParameters | None:
    """`choose_masking`, held against the shares of noise that the study counts on, where it does.

    How many shares those are follows from the study's own sites; a smaller roster may not have them. Raises
    ConfigError.
    """
    masking, whole = choose_masking(study, n_sites), choose_masking(study)
    if study.shared_noise is None or whole is None or masking is None:
        return masking
    if whole.colluders < 1:
        raise ConfigError(
            "noise cannot be shared where no site is counted on to collude: every site knows its own share",
            where="aggregation.colluders",
            fix="state `aggregation: {kind: masked, colluders: 1}` or more, with three sites or more",
        )
    honest = masking.threshold - whole.colluders
    if masking.colluders < whole.colluders or honest < whole.fewest_honest_survivors:
        raise ConfigError(
            f"the noise of a sum counts on {whole.fewest_honest_survivors} honest sites beside {whole.colluders} that "
            f"collude, and masks over {masking.n_sites} sites do not give that",
            where="roster",
            fix="bring more of the study's sites together, or make a study with fewer",
        )
    return masking


def protects_less(study: Study, before: int, after: int) -> str | None:
    """What a roster of `after` sites gives up of the protection that one of `before` sites has; None: nothing.

    Who decides for a site was told how many colluding sites the masks hold against, and over how many honest ones a sum
    is at least. A smaller roster derives both anew. Raises ConfigError where masks cannot be had.
    """
    had, has = masks_for(study, before), masks_for(study, after)
    if had is None or has is None:
        return None  # a shared key protects from no coalition, whatever the roster
    if has.colluders < had.colluders:
        sites = f"{has.colluders} site{'s' * (has.colluders != 1)}"
        return f"masks would hold against the server with {sites} instead of {had.colluders}"
    if has.fewest_honest_survivors < had.fewest_honest_survivors:
        return (
            f"a sum would be over at least {has.fewest_honest_survivors} honest sites instead of "
            f"{had.fewest_honest_survivors}"
        )
    return None


def choose_codec(study: Study, n_params: int, *, masked: bool | None = None) -> Codec:
    """The encoding of a study's updates; `masked` asks for one with masks or without, whatever the study says.

    The range is public: given, or so many standard deviations of the noise that one update carries. The noise
    dominates each coordinate, so hardly anything is clipped, and what is clipped was decided by constants.
    """
    shares = share_rule(study)
    if shares is not None:
        return _codec_of_sums(study, shares, n_params)
    limit = study.codec.range
    if limit is None:
        limit = study.codec.range_noise_stds * update_noise_std(study)
    return Codec.choose(
        n_sites=len(study.sites),
        value_bits=study.codec.value_bits,
        n_params=n_params,
        limit=limit,
        masked=study.masked is not None if masked is None else masked,
    )


def _codec_of_sums(study: Study, rule: ShareRule, n_params: int) -> WrappingCodec:
    """Sums of shared noise: as many bits as no sum of the study exceeds, except with probability 2^-40."""
    dp, n_sites = study.dp, len(study.sites)
    assert dp is not None  # there is a rule
    bits = rule.bits(
        n_sites=n_sites, n_params=n_params, rounds=study.training.rounds, most_units=dp.max_units_per_site
    )
    return WrappingCodec.for_sums(n_sites=n_sites, n_params=n_params, bits=bits, step=rule.update_step)
