"""A site's own updates over a study, in the vault: each counts once, and no message holds anything of them."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from federation_driver import (
    N_PARAMS,
    BadWire,
    Federation,
    FusedVault,
    KilledError,
    Learner,
    Nearest,
    closing,
    survive,
)

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.crypto.packing import unpack60
from secure_triplay.errors import CryptoError
from secure_triplay.wire import Report, Upload
from secure_triplay.wireformat import read

ROUNDS = 3


class Noisy(Learner):
    """Learns another update each time it is asked, as a site does; what it gave is kept here, outside the vault."""

    given: dict  # set by `noisy`: (site, round) -> updates, in the order in which they were made

    def update(self, adapter):
        super().update(adapter)
        made = np.random.default_rng().normal(0, 0.1, N_PARAMS).astype(np.float32)
        self.given.setdefault((self.site.index, self.site.trained[-1]), []).append(made)
        return made


def noisy(folder, n_sites=3, **more):
    given: dict = {}

    def learner(site, accounts):
        made = Noisy(site, accounts)
        made.given = given
        return made

    return Federation(folder, n_sites, rounds=ROUNDS, learner=learner, **more), given


def slow_sum(parts: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(N_PARAMS)
    for part in parts:
        total = total + part.astype(np.float64)
    return total


def sent_integers(federation, content: bytes) -> np.ndarray:
    """What an upload without masks holds, by the key that every site has."""
    upload = Upload.from_bytes(content)
    keys: CkksSecretKey = federation.sites[0].session._me.keys.ckks
    chunks = federation.plan.n_chunks
    return federation.codec.sum_from_slots(keys.decrypt(unpack60(upload.c0, chunks), [upload.header.seed]), 1)


def test_the_sum_is_that_of_the_updates_as_training_gave_them(tmp_path):
    federation, given = noisy(tmp_path)
    with closing(federation):
        federation.run()
        for index, site in federation.sites.items():
            made = [given[index, number] for number in range(1, ROUNDS + 1)]
            assert [len(each) for each in made] == [1] * ROUNDS
            own = site.session.own
            assert (own.count, own.last) == (ROUNDS, ROUNDS)
            assert own.total.tobytes() == slow_sum([each for (each,) in made]).tobytes()


def test_weights_and_rounding_are_no_part_of_it(tmp_path):
    from federation_driver import learned

    with closing(Federation(tmp_path, 3, rounds=2)) as federation:
        federation.run()
        before = federation.oracle()
        for index, site in federation.sites.items():
            parts = [learned(index, before[n].adapter.astype(np.float32)) for n in range(2)]
            assert site.session.own.total.tobytes() == slow_sum(parts).tobytes()


@pytest.mark.parametrize("masked", [False, True])
def test_a_site_that_dies_at_every_step_counts_what_it_sent_once_and_nothing_else(tmp_path, masked):
    """Site 0 dies at the first step of a request, is asked again, dies at the second one, and so on to the last."""
    federation, given = noisy(tmp_path, masking=MaskingParameters.derive(3) if masked else None)
    uploads: dict[int, set[bytes]] = {}
    with closing(federation):
        site, plain, deaths = federation.sites[0], federation.ask, 0

        def ask(index, content):
            nonlocal deaths
            if index:
                return plain(index, content)
            for steps in range(200):
                site.fuse.left = steps
                answer = plain(0, content)
                site.fuse.left = None
                if answer is not None:
                    return answer
                deaths += 1
                federation.boot(0)
            raise AssertionError("it never got through")

        federation.ask = ask

        def wire(direction, node, content):
            if direction == "up" and node == 0:
                reply = read(content, Report) if content[5] == Report.kind else None
                if reply is not None and reply.upload:
                    uploads.setdefault(reply.round, set()).add(reply.upload)
            return [content]

        federation.run(wire)
        assert deaths >= 30
        assert max(len(each) for (index, _), each in given.items() if index == 0) > 1, (
            "it trained anew at times"
        )
        assert sorted(uploads) == [1, 2, 3]
        last = [given[0, number][-1] for number in (1, 2, 3)]
        for number, update in enumerate(last, 1):
            (content,) = uploads[number]
            if not masked:  # the last one is the one that left
                sent = federation.codec.quantise(update, Nearest())
                assert (sent_integers(federation, content) == sent).all()
        own = site.session.own
        assert (own.count, own.last) == (3, 3)
        assert own.total.tobytes() == slow_sum(last).tobytes()
        federation.boot(0)
        assert site.session.own.total.tobytes() == own.total.tobytes()


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", ["update", "upload", "sum", "state", "own"])
def test_a_site_that_dies_right_before_or_after_a_file_is_on_disk_counts_each_round_once(
    tmp_path, monkeypatch, name, saved
):
    """Once in each round. What comes after `own` is that the update is forgotten."""
    federation, given = noisy(tmp_path)
    died = []

    def save(self, what, content):
        turn = (len(died), site.session.state.round if site.session else 0)
        dies = what == name and self.fuse is site.fuse and turn[1] not in [number for _, number in died]
        if dies:
            died.append(turn)
        if saved or not dies:
            Vault.save(self, what, content)
        if dies:
            raise KilledError

    with closing(federation):
        site, plain = federation.sites[0], federation.ask
        monkeypatch.setattr(FusedVault, "save", save)

        def ask(index, content):
            answer = plain(index, content)
            if answer is None:
                federation.boot(index)
                answer = plain(index, content)
            return answer

        federation.ask = ask
        federation.run()
        assert len(died) >= ROUNDS
        last = [given[0, number][-1] for number in range(1, ROUNDS + 1)]
        for _ in range(2):
            own = site.session.own
            assert (own.count, own.last) == (ROUNDS, ROUNDS)
            assert own.total.tobytes() == slow_sum(last).tobytes()
            federation.boot(0)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_dies_and_whatever_gets_lost_no_update_is_in_a_sum_twice_and_none_that_was_sent_is_missing(
    tmp_path, seed
):
    federation, given = noisy(tmp_path, 4, quorum=3)
    with closing(federation):
        schedule = random.Random(seed)
        wire = BadWire(schedule, drop=0.05, copy=0.1, keep=0.05)
        survive(federation, schedule, wire, kills=6)
        for index, site in federation.sites.items():
            federation.boot(index)
            own, applied = site.session.own, site.session.state.round
            last = {n: each[-1] for (i, n), each in given.items() if i == index and n <= applied}
            sure = {n for i, n in wire.uploads if i == index and n <= applied}
            rest = sorted(set(last) - sure)  # trained, and died before it was on disk, or before it left
            choices = [sure | set(some) for k in range(len(rest) + 1) for some in combinations(rest, k)]
            sums = {slow_sum([last[n] for n in sorted(each)]).tobytes(): len(each) for each in choices}
            assert sums[own.total.tobytes()] == own.count


def test_an_update_whose_upload_came_too_late_for_the_sum_counts_too(tmp_path):
    """It was trained and charged; the others closed the round without it."""
    federation, given = noisy(tmp_path, 4, quorum=3)
    with closing(federation):

        def late(direction, node, content):
            lost = (
                direction == "up" and node == 1 and content[5] == Report.kind and read(content, Report).upload
            )
            return [] if lost else [content]

        federation.run(late)
        survivors = [[h.site for h in federation.archive.total(n).survivors] for n in range(1, ROUNDS + 1)]
        assert not any("site-1" in names for names in survivors)
        trained = sorted(n for i, n in given if i == 1)
        assert trained
        own = federation.sites[1].session.own
        assert own.count == len([n for n in trained if n <= federation.sites[1].session.state.round])


def test_a_round_that_the_site_declined_does_not_count(tmp_path):
    federation, given = noisy(tmp_path, 4, quorum=3)
    with closing(federation):
        federation.exchange()
        federation.exchange()
        federation.sites[2].reasons = ["outside the allowed hours"]
        federation.exchange()
        federation.exchange()
        federation.sites[2].reasons = []
        federation.run()
        rounds = sorted(n for i, n in given if i == 2)
        own = federation.sites[2].session.own
        assert 1 not in rounds
        assert own.count == len(rounds) < ROUNDS
        assert own.total.tobytes() == slow_sum([given[2, n][0] for n in rounds]).tobytes()


def test_what_is_sent_is_the_same_with_and_without_it_bit_for_bit(tmp_path):
    """Plain integers of every upload, and the size of every message; keys and ciphertexts are fresh in each study."""
    seen = []
    for keeps in (True, False):
        with closing(Federation(tmp_path / str(keeps), 3, rounds=2, keeps_own=keeps)) as federation:
            integers, sizes = {}, []

            def wire(direction, node, content, integers=integers, sizes=sizes, federation=federation):
                sizes.append((direction, node, content[5], len(content)))
                if direction == "up" and content[5] == Report.kind and (r := read(content, Report)).upload:
                    integers[node, r.round] = sent_integers(federation, r.upload).tobytes()
                return [content]

            federation.run(wire)
            state = federation.states()[0].to_bytes()
            seen.append((integers, sizes, state))
            assert (federation.sites[0].session.own.count == 2) is keeps
            assert (federation.sites[0].folder / "state" / "own").exists() is keeps
    assert len(seen[0][0]) == 6
    assert seen[0] == seen[1]


def test_no_message_journal_or_file_at_rest_shows_an_update_the_sum_or_the_personal_adapter(tmp_path):
    federation, given = noisy(tmp_path)
    heard = []
    with closing(federation):
        federation.run(lambda direction, node, content: (heard.append(content), [content])[1])
        vectors = [update for each in given.values() for update in each]
        for site in federation.sites.values():
            own = site.session.own
            vectors += [own.total, own.personal(site.session.state.published, 0.1)]
        rows = [
            vector[i : i + 6].astype(kind).tobytes()
            for vector in vectors
            for i in range(0, N_PARAMS - 6, 6)
            for kind in ("<f4", "<f8")
        ]
        notes = [repr(site.notes).encode() for site in federation.sites.values()]
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        content = b"\0".join([*heard, *notes, *files])
        assert len(content) > 100_000
        assert not [row for row in rows if row in content]
        opened = federation.vault(federation.sites[0]).load("own")
        assert [row for row in rows if row in opened], "the search can find"


@pytest.mark.parametrize("name", ["own", "update"])
def test_a_cut_file_is_an_error_and_no_new_beginning(tmp_path, name):
    federation, _ = noisy(tmp_path)
    with closing(federation):
        while federation.sites[0].session.state.round < 2:
            federation.exchange()
        path = federation.sites[0].folder / "state" / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CryptoError, match="damaged"):
            federation.boot(0)
