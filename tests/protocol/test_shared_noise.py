"""Masked rounds whose noise is shared, through the real sessions, masks and ciphertexts.

The opened sum is the slow sum, noise and all, and with fewer sites than it counts on nothing is unmasked.
"""

from __future__ import annotations

import numpy as np
import pytest
from federation_driver import N_PARAMS, OPTIMISER, Federation, Learner, RunError, closing

from secure_triplay.client.optimiser import step
from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.crypto.packing import unpack60
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Approval, Behind, Declined, Report, Unmasked, Upload
from secure_triplay.wireformat import read

BITS, STEP, SHARE_VARIANCE = 14, 1e-3, 300.0**2


class Shares(Learner):
    """Integers of the adapter, and real Skellam noise; what was sent is kept for the oracle."""

    sent: dict  # set by `federation_of`: (site, round) -> integers

    def noised_sum(self, adapter):
        super().update(adapter)  # notes that it trained, and under which charge
        index, number = self.site.index, self.site.trained[-1]
        exact = np.rint(100 * np.sin(np.arange(N_PARAMS) * (index + 1) + 3 * adapter)).astype(np.int64)
        made = exact + NoiseSource().skellam(N_PARAMS, SHARE_VARIANCE)
        if self.wide:
            made[::7] += (
                -1
            ) ** index * 2**37  # wider than a field and than 32 bits; of an even number of sites it cancels
        self.sent.setdefault((index, number), []).append(made)
        return made

    def update(self, adapter):
        raise AssertionError("a study with shared noise asked for a step of one site")


def federation_of(folder, n_sites=4, *, wide=False, **more):
    sent = {}

    def learner(site, accounts):
        made = Shares(site, accounts)
        made.sent, made.wide = sent, wide
        return made

    codec = WrappingCodec.for_sums(n_sites=n_sites, n_params=N_PARAMS, bits=BITS, step=STEP)
    federation = Federation(
        folder, n_sites, masking=MaskingParameters.derive(n_sites), codec=codec, learner=learner, **more
    )
    return federation, sent


def slow_states(federation, sent):
    """State after each closed round, by adding what the survivors sent in Python's integers."""
    states = [federation.start]
    for number in range(1, (federation.archive.last or 0) + 1):
        survivors = [header.site for header in federation.archive.total(number).survivors]
        total = [0] * N_PARAMS
        for site in federation.sites.values():
            if site.name in survivors:
                # drawn once: two noises under one charge would be a second release
                (made,) = sent[site.index, number]
                total = [a + int(b) for a, b in zip(total, made, strict=True)]
        n = len(survivors)
        mean = (
            np.array(total, float) * (federation.codec.step / n) * n / float(n)
        )  # equal weights, bit for bit
        states.append(step(states[-1], mean, OPTIMISER))
    return states


def holds(federation, sent, rounds):
    oracle = slow_states(federation, sent)
    assert len(oracle) == rounds + 1
    assert {state.to_bytes() for state in federation.states().values()} == {oracle[rounds].to_bytes()}


@pytest.mark.parametrize("wide", [False, True])
def test_the_opened_sum_is_the_slow_sum_of_all_integers_and_noises(wide, tmp_path):
    federation, sent = federation_of(tmp_path, wide=wide)
    with closing(federation):
        federation.run()
        holds(federation, sent, 3)
        for site in federation.sites.values():  # a share by itself carries less noise: nobody keeps one
            assert site.session.own.count == 0
            assert not (site.folder / "state" / "own").exists()
        spread = np.std([made - np.rint(made / 2**37) * 2**37 for (made,) in sent.values()])
        assert spread > 200  # the noise was there: 308 with it, give or take 3, and 70 without


def test_sites_that_vanish_or_are_restarted_never_draw_a_second_noise(tmp_path):
    federation, sent = federation_of(tmp_path, 4)
    with closing(federation):
        for turn in range(4):
            federation.exchange()
            for index in federation.sites:
                if federation.sites[index].session is not None:
                    federation.boot(index)
            if turn == 2:
                federation.sites[1].session = None
        federation.run()
        holds(federation, sent, 3)


def test_a_site_killed_between_its_noise_and_its_upload_sends_that_noise_and_no_other(tmp_path):
    """Integers are wider than 32 bits here: they come back from the disk as they were."""
    federation, sent = federation_of(tmp_path, wide=True)
    with closing(federation):
        while (federation.server.exchange.kind, federation.server.exchange.round) != ("train", 1):
            federation.exchange()
        site, message = federation.sites[1], federation.server.begin(list(federation.sites))[1]
        for steps in range(100):
            site.fuse.left = steps
            alive = federation.ask(1, message) is not None
            site.fuse.left = None
            assert not alive
            vault = federation.vault(site)
            if vault.load("update") is not None and vault.load("upload") is None:
                break
            sent.pop((1, 1), None)  # nothing was kept of it
            federation.boot(1)
        federation.boot(1)
        federation.boot_server()
        federation.run()
        assert len(sent[1, 1]) == 1
        holds(federation, sent, 3)


def test_with_fewer_sites_than_the_noise_counts_on_nothing_is_unmasked(tmp_path):
    """Three of four are the threshold, for two honest shares beside one colluder. Two are left: the round fails."""
    federation, sent = federation_of(tmp_path, attempts=2)
    with closing(federation):
        while (federation.server.exchange.kind, federation.server.exchange.round) != ("witness", 1):
            federation.exchange()
        for index in (1, 2):
            federation.sites[index].session = None
        revealed = []

        def wire(way, node, content):
            if way == "up" and isinstance(
                read(content, Report, Approval, Unmasked, Behind, Declined), Unmasked
            ):
                revealed.append(node)
            return [content]

        with pytest.raises(RunError):
            federation.run(wire)
        assert len(sent) == 4  # all four had trained and sent, and the encrypted sum was there
        assert federation.archive.total(1).round == 1
        assert not federation.archive.is_signed(1)
        assert revealed == []
        assert {state.round for state in federation.states().values()} == {0}


def test_an_upload_alone_is_uniform_to_whoever_has_the_key(tmp_path):
    federation, _ = federation_of(tmp_path)
    with closing(federation):
        while (federation.server.exchange.kind, federation.server.exchange.round) != ("train", 1):
            federation.exchange()
        messages = federation.server.begin(list(federation.sites))
        reply = read(federation.ask(2, messages[2]).reply, Report)
        upload, me = Upload.from_bytes(reply.upload), federation.sites[0].session._me
        words = federation.codec.sum_from_slots(
            me.keys.ckks.decrypt(unpack60(upload.c0, 1), [upload.header.seed]), 1
        )
        eighths = np.bincount(words >> (federation.codec.word_bits - 3), minlength=8)
        assert ((eighths - 512.0) ** 2 / 512.0).sum() < 42.0  # passed by chance once in a million
