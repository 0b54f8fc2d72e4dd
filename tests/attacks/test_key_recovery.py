"""Unrounded sums give the key away; exact sums, and flooded ones, do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal

from secure_triplay.attacks import key_recovery, ring
from secure_triplay.attacks.attack import Setting
from secure_triplay.attacks.finding import Verdict
from secure_triplay.attacks.key_recovery import Exchange, key_coefficients, recover_key, recovered_fraction
from secure_triplay.client.seal_format import new_context
from secure_triplay.config import load_study
from secure_triplay.crypto.exactness import noise_std
from secure_triplay.crypto.expand import expand_c1
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.privacy.noise import NoiseSource


@pytest.fixture(scope="module")
def study(root):
    return load_study(root / "configs" / "demo.yaml")


@pytest.fixture(scope="module")
def exchange(study) -> Exchange:
    return Exchange.of(study, 0)


def random_polynomial(seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, MODULUS, DEGREE)
    return np.array([int(value) for value in drawn], object)


def test_product_in_the_ring_is_the_schoolbook_product():
    a, b = random_polynomial(1), np.zeros(DEGREE, object)
    b[[0, 1, 4095]] = 3, 5, MODULUS - 1  # 3 + 5x - x^4095
    wanted = [(3 * a[j] + 5 * (a[j - 1] if j else -a[-1]) + (a[(j + 1)] if j < 4095 else -a[0])) % MODULUS
              for j in range(DEGREE)]  # fmt: skip
    assert wanted == ring.multiply(a, b).tolist()
    assert (ring.from_ntt(ring.to_ntt(a)) == a).all()


def test_slots_are_turned_into_the_polynomial_that_seal_encodes(exchange):
    context = new_context(exchange.codec.parameters)
    encoder, plain = seal.CKKSEncoder(context), seal.Plaintext()
    slots = np.random.default_rng(2).normal(0, 1e6, (2048, 2)).view(np.complex128)[:, 0]
    encoder.encode(slots.tolist(), exchange.codec.parameters.scale, plain)
    theirs = ring.from_ntt(np.array([plain.dyn_array()[i] for i in range(DEGREE)], object))
    ours = ring.rounded(ring.polynomial_of(slots) * exchange.codec.parameters.scale)
    assert abs(ring.centred((theirs - ours) % MODULUS)).max() <= 1
    assert np.abs(ring.slots_of(ring.polynomial_of(slots).astype(float)) - slots).max() < 1e-6


def test_the_whole_key_is_recovered_from_one_unrounded_sum(exchange):
    guess, chunks = recover_key(exchange.released(exchange.unrounded()))
    assert recovered_fraction(guess, key_coefficients(exchange.key)) == 1.0
    assert chunks <= 2


def test_the_recovered_key_opens_the_upload_of_a_single_site(exchange):
    """What is lost is not a number but every update: c0 + c1 s of somebody else's upload is its plaintext."""
    guess, _ = recover_key(exchange.released(exchange.unrounded()))
    codec, rng = exchange.codec, np.random.default_rng(7)
    integers = codec.quantise(rng.normal(0, 0.05, codec.n_params).astype(np.float32), NoiseSource())
    sealed = exchange.key.encrypt(codec.to_slots(integers), codec.encode_tolerance)
    c1, opened = expand_c1(sealed.seed, codec.n_chunks), np.empty((codec.n_chunks, 2048), np.complex128)
    for chunk in range(codec.n_chunks):
        key = ring.to_ntt(guess.astype(object) % MODULUS)
        plain = (sealed.c0[chunk].astype(object) + c1[chunk].astype(object) * key) % MODULUS
        opened[chunk] = ring.slots_of(ring.centred(ring.from_ntt(plain))) / codec.parameters.scale
    assert (codec.sum_from_slots(opened, 1) == integers).all()


def test_exact_sums_leave_a_guess_that_is_no_better_than_chance(exchange):
    exact = exchange.rounded()
    assert np.abs(exact - exchange.unrounded()).max() < 1.5 * 10 * noise_std(4, exchange.codec.scale_bits)
    fraction = recovered_fraction(recover_key(exchange.released(exact))[0], key_coefficients(exchange.key))
    assert abs(fraction - 1 / 3) < 5 * np.sqrt(2 / 9 / DEGREE)


def test_flooding_hides_the_key_and_too_little_of_it_averages_out(exchange):
    rng, truth = np.random.default_rng(0), key_coefficients(exchange.key)
    fractions = [
        recovered_fraction(recover_key(exchange.released(exchange.flooded(std, rng, n)))[0], truth)
        for std, n in ((2.0**30, 1), (4.0, 1), (4.0, 4000))
    ]
    assert max(fractions[:2]) < 0.37
    assert fractions[2] == 1.0


def test_the_attack_sees_seeds_and_sums_and_neither_key_nor_site(exchange):
    seen = exchange.released(exchange.unrounded())
    assert set(vars(seen)) == {"parameters", "c0", "seeds", "slots"}
    with pytest.raises(AttributeError):
        seen.key  # noqa: B018


def test_the_suite_gets_a_valid_control_and_nothing_under_exact_rounding(study, tmp_path: Path):
    outcome = key_recovery.run(Setting(study, 0, True, tmp_path))
    (control,) = outcome.controls
    assert control.name == "key_recovery"
    assert control.valid
    assert control.figures["recovered_fraction"] == 1.0
    rounding, flooding, averaged = outcome.findings
    assert rounding.verdict is flooding.verdict is Verdict.NOTHING_FOUND
    assert (rounding.value, rounding.bound) == (0.0, 0.0)
    assert averaged.verdict is Verdict.LEAKS_AS_STATED


def test_a_control_that_finds_nothing_makes_every_finding_invalid(study, tmp_path: Path, monkeypatch):
    honest = Exchange.unrounded
    monkeypatch.setattr(Exchange, "unrounded", lambda self: np.rint(honest(self).view(float)).view(complex))
    outcome = key_recovery.run(Setting(study, 0, True, tmp_path))
    assert not outcome.controls[0].valid
    assert outcome.findings[0].verdict is Verdict.INVALID


def test_a_study_of_many_sites_is_attacked_with_its_own_encoding(study):
    sites = tuple(study.sites[0].model_copy(update={"name": f"site-{i}"}) for i in range(32))
    large = Exchange.of(study.model_copy(update={"sites": sites}), 1)
    assert len(large.seeds) == 32
    guess, _ = recover_key(replace(large.released(large.unrounded())))
    assert recovered_fraction(guess, key_coefficients(large.key)) == 1.0
