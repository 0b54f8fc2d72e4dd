"""Whole rounds against plain integer sums: whoever vanishes, whenever, and whatever restarts."""

import random
from itertools import combinations

import numpy as np
import pytest

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.crypto.masking import residues
from secure_triplay.crypto.masking.expand import (
    add_masks,
    mask_private_key,
    pair_mask_key,
    self_mask_check,
    self_mask_key,
    subtracts,
)
from secure_triplay.crypto.masking.sharing import combine
from secure_triplay.crypto.packing import add_mod
from secure_triplay.errors import CryptoError, ProtocolError

STEPS = ("advertise", "share", "mask", "agree", "reveal")


def schedule(seed):
    """Size, threshold and who answers in each step; whoever is gone stays away."""
    draw = random.Random(seed)
    n = draw.randint(3, 7)
    colluders = draw.randint(0, (n - 2) // 2)
    least = (n + colluders) // 2 + 1
    threshold = draw.choice([least, least, draw.randint(least, n)])
    names = [f"site-{i:02d}" for i in range(n)]
    present, here = {}, names
    if draw.random() < 0.5:  # as many as may vanish do, each in a step of its own
        gone = {name: draw.choice(STEPS) for name in draw.sample(names, n - threshold)}
        for step in STEPS:
            here = [name for name in here if gone.get(name) != step]
            present[step] = here
    else:
        loss = draw.choice([0.05, 0.1, 0.3])
        for step in STEPS:
            here = [name for name in here if draw.random() >= loss]
            present[step] = here
    return draw, n, colluders, threshold, present


@pytest.mark.parametrize("block", range(10))
def test_every_schedule_gives_the_plain_sum_or_is_declared_failed(new_round, block):
    completed = failed = lost_after_sharing = 0
    for seed in range(50 * block, 50 * block + 50):
        draw, n, colluders, threshold, present = schedule(seed)
        this = new_round(n, colluders=colluders, dropouts=0, threshold=threshold, seed=seed)

        def restart_some(step, this=this, draw=draw):
            for name in this.sites:
                if draw.random() < 0.2:
                    this.sites[name] = this.restarted(name)

        enough = all(len(present[step]) >= threshold for step in STEPS)
        try:
            sums = this.run(present, restart_some)
        except ProtocolError:
            assert not enough, f"schedule {seed} failed with enough sites"
            failed += 1
            continue
        assert enough, f"schedule {seed} completed with too few sites"
        assert sums.tolist() == this.plain_sums(), f"schedule {seed}"
        completed += 1
        lost_after_sharing += this.members != this.survivors
    assert completed >= 10
    assert failed >= 5
    assert lost_after_sharing >= 5


def test_the_sum_through_real_ciphertexts_is_the_plain_sum(new_round):
    this = new_round(3, n_params=9_000)
    this.run()
    key = CkksSecretKey.generate(this.codec.parameters)
    sealed = [
        key.encrypt(this.codec.to_slots(words), this.codec.encode_tolerance)
        for words in this.uploads.values()
    ]
    total = sealed[0].c0.copy()
    for one in sealed[1:]:
        add_mod(total, one.c0)
    decoded = this.codec.sum_from_slots(key.decrypt(total, [one.seed for one in sealed]), 3)
    assert decoded.tolist() == sum(this.uploads.values()).tolist()
    sums = this.unmask()
    assert sums.tolist() == this.plain_sums()
    mean = this.codec.mean(sums, 3)
    expected = [(total - 3 * this.codec.levels) * this.codec.step / 3 for total in this.plain_sums()]
    assert np.allclose(mean, expected, rtol=0, atol=1e-12)


def test_sixty_sites_on_a_sparse_graph_complete_with_six_lost(new_round):
    this = new_round(60, colluders=2, dropouts=6)
    assert not this.parameters.complete
    names = list(this.sites)
    away = set(random.Random(1).sample(names, 6))
    left = [name for name in names if name not in away]
    sums = this.run({"advertise": names, "share": names, "mask": left, "agree": left, "reveal": left})
    assert sums.tolist() == this.plain_sums()
    peers = this.parameters.peers
    assert peers < 59
    assert all(len(one.sealed) == peers for one in this.sealed)


def test_two_sites_complete_and_are_told_what_the_sum_shows(new_round):
    this = new_round(2)
    assert this.run().tolist() == this.plain_sums()
    assert "tells each of them the other's update" in this.parameters.in_words()


def opened_by(this, victim, helpers, revealed=()):
    """The victim's values, from its upload and all that helpers hold and others revealed; None if masks stay."""
    keys = {one.site: one for one in this.keys}
    held = [(name, this.sites[name]._state["held"][victim]) for name in helpers]
    mask_shares = {this.context.holders(victim).index(name) + 1: both[:16] for name, both in held}
    self_shares = {this.context.holders(victim).index(name) + 1: both[16:] for name, both in held}
    for one in revealed:
        self_shares[this.context.holders(victim).index(one.site) + 1] = one.shares[victim]
    found = []
    for shares, right in (
        (self_shares, lambda s: self_mask_check(this.context, victim, s) == keys[victim].self_mask_check),
        (
            mask_shares,
            lambda s: (
                mask_private_key(this.context, victim, s).public_key().public_bytes_raw()
                == keys[victim].mask_key
            ),
        ),
    ):
        threshold = min(this.parameters.share_threshold, len(shares))
        found.append(combine(shares, threshold, right) if threshold else None)
    if None in found:
        return None
    self_seed, mask_seed = found
    total = this.uploads[victim].astype("<u8")
    masks = [(self_mask_key(this.context, victim, self_seed), True)]
    private = mask_private_key(this.context, victim, mask_seed)
    for peer in this.context.peers(victim):
        key = pair_mask_key(this.context, private, keys[peer].mask_key, victim, peer)
        masks.append((key, not subtracts(victim, peer)))
    add_masks(total, masks)
    return this.codec.unpack(residues(this.codec, total), 1).tolist()


def test_server_and_fewer_sites_than_the_threshold_open_nobody_and_the_threshold_opens_everybody(new_round):
    this = new_round(6, colluders=1, threshold=4)
    this.run()
    names = list(this.sites)
    for victim in names:
        others = [name for name in names if name != victim]
        for helpers in combinations(others, 3):
            assert opened_by(this, victim, helpers) is None
        assert opened_by(this, victim, others[:1], this.revealed) is None
        assert opened_by(this, victim, others[:4]) == this.values[victim].tolist()


def test_a_sum_stays_masked_until_the_last_share_is_there(new_round):
    this = new_round(5, threshold=4)
    this.run()
    this.revealed = this.revealed[:3]
    with pytest.raises(ProtocolError, match="cannot be taken off"):
        this.unmask()


def test_one_upload_looks_uniform(new_round):
    """The lowest and highest four bits of words against 16 equal bins; by chance it fails once in a million."""
    this = new_round(3, n_params=20_000)
    this.values = {name: np.zeros(20_000, np.int64) for name in this.sites}
    this.run()
    bins = 16
    for words in this.uploads.values():
        for shift in (0, this.codec.word_bits - 4):
            counts = np.bincount(words >> shift & (bins - 1), minlength=bins)
            chi2 = ((counts - len(words) / bins) ** 2 / (len(words) / bins)).sum()
            assert chi2 < 59.0


def test_a_site_that_was_declared_lost_is_not_unmasked(new_round):
    """Its upload arrives late. All that was revealed takes off its pairwise masks; its self mask stays."""
    this = new_round(4, threshold=3, n_params=20_000)
    names = list(this.sites)
    late = names[2]
    left = [name for name in names if name != late]
    this.run({"advertise": names, "share": names, "mask": left, "agree": left, "reveal": left})
    words = this.mask(late)
    assert late not in this.recovered.survivors
    assert all(one.shares[late] == this.sites[one.site]._state["held"][late][:16] for one in this.revealed)
    with pytest.raises(ProtocolError, match="without this site"):
        this.sites[late].agree(this.survivors, this.masked_with)
    everyone = tuple(names)
    for name in left:
        with pytest.raises(ProtocolError, match="another list"):
            this.sites[name].agree(everyone, this.masked_with)
    # what an attacker can do: take off what the recovered mask key gives
    total = words.astype("<u8")
    private = mask_private_key(this.context, late, this.recovered.lost[late])
    keys = {one.site: one.mask_key for one in this.keys}
    pairs = [pair_mask_key(this.context, private, keys[peer], late, peer) for peer in left]
    add_masks(total, [(key, not subtracts(late, peer)) for key, peer in zip(pairs, left, strict=True)])
    rest = residues(this.codec, total - this.codec.pack(this.values[late]).astype("<u8"))
    for shift in (0, this.codec.word_bits - 4):
        counts = np.bincount(rest >> shift & 15, minlength=16)
        assert ((counts - len(rest) / 16) ** 2 / (len(rest) / 16)).sum() < 59.0


def test_nothing_that_a_site_publishes_is_a_key_of_its_masks(new_round, monkeypatch):
    """What it signs of its self mask's seed follows from that seed too, and the server has it from the start."""
    used = []

    def watched(total, masks):
        used.extend(key for key, _ in masks)
        add_masks(total, masks)

    monkeypatch.setattr("secure_triplay.client.masking.site.add_masks", watched)
    this = new_round(3)
    assert this.run().tolist() == this.plain_sums()
    assert (len(used), len(set(used))) == (9, 6)  # each site's own mask, and three pairs from either side
    public = {part for one in this.keys for part in (one.seal_key, one.mask_key, one.self_mask_check)}
    assert len(public) == 9
    assert public.isdisjoint(used)


def test_secrets_of_two_rounds_have_nothing_in_common(new_round):
    """The very same site, roster and store: nothing of round 1 is drawn again in round 2."""
    one, two = new_round(3, number=1), new_round(3, number=2)
    two.stores = one.stores
    two.sites = {name: two.restarted(name) for name in two.sites}
    one.run()
    two.run()
    for name in one.sites:
        first, second = one.sites[name]._state, two.sites[name]._state
        for secret in ("self_seed", "mask_seed", "seal_key"):
            assert first[secret] != second[secret]
    with pytest.raises(CryptoError):
        two.revealed = one.revealed
        two.unmask()
