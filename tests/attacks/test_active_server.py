"""Tricks of an active server work on a client without checks, and a site of ours refuses them before decryption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secure_triplay.attacks import active_server
from secure_triplay.attacks.active_server import TRICKS, Clients, key_by_masking
from secure_triplay.attacks.attack import Setting
from secure_triplay.attacks.finding import Verdict
from secure_triplay.attacks.protected import ProtectedSites
from secure_triplay.client.tag import TagKey
from secure_triplay.config import load_study
from secure_triplay.wire import SumMessage


@pytest.fixture(scope="module")
def study(root):
    return load_study(root / "configs" / "demo.yaml")


@pytest.fixture(scope="module")
def clients(study) -> Clients:
    return Clients.of(study, 0)


def test_the_unprotected_client_opens_an_honest_sum_as_what_it_is(clients):
    opened = clients.client.open(clients.sum_of(clients.everybody))
    oracle = sum(clients.truth(index) for index in clients.everybody)
    assert (opened == oracle).all()


def test_the_check_value_in_the_payload_does_refuse_what_is_plainly_no_sum(clients):
    """Without this the unprotected client would be a straw man: noise, wrong counts and doubled sums it notices."""
    whole = clients.sum_of(clients.everybody)
    noise = replace(whole, c0=np.random.default_rng(0).integers(0, 2**59, 4096).astype(np.uint64))
    for wrong in (noise, replace(whole, terms=whole.terms - 1), replace(whole + whole, terms=whole.terms)):
        assert clients.client.open(wrong) is None


@pytest.mark.parametrize("name", TRICKS)
def test_every_trick_works_on_the_unprotected_client(clients, name):
    assert TRICKS[name].works(clients)


def test_one_answer_to_a_doctored_c1_gives_nearly_the_whole_key(clients):
    assert key_by_masking(clients, np.random.default_rng(1)) > 0.995


@pytest.mark.parametrize("name", TRICKS)
def test_our_site_refuses_every_trick_before_anything_is_decrypted(study, name):
    trial = TRICKS[name].against_ours(ProtectedSites.of(study))
    assert trial.decryptions == 0
    assert trial.refused == trial.offered >= 1


def test_our_site_opens_the_honest_sum_so_that_refusing_means_something(study):
    sites = ProtectedSites.of(study)
    trial = sites.tried([sites.summed(sites.everybody), sites.summed(dict.fromkeys(sites.names[1:], 1))])
    assert (trial.offered, trial.refused, trial.decryptions) == (2, 0, 2)


def test_of_two_survivor_lists_for_one_round_only_one_is_opened_whoever_signs_first(study):
    openings = 0
    for first in range(5):
        sites = ProtectedSites.of(study)
        whole, other = sites.summed(sites.everybody), sites.summed(dict.fromkeys(sites.names[1:], 1))
        for total, names in ((whole, sites.names[:first]), (other, sites.names[first:])):
            sites.ask_for_signatures(total, names)
        signed = {total.sha256: sites.ask_for_signatures(total, sites.names) for total in (whole, other)}
        for total, names in ((whole, sites.names[::2]), (other, sites.names[1::2])):
            for name in names:
                sites.ask_to_open(total, signed[total.sha256], name)
        opened = {
            session.state.adapter.tobytes() for session in sites.sessions.values() if session.state.round
        }
        assert len(opened) <= 1
        openings += len(opened)
    assert openings > 0


def test_a_site_that_verified_nothing_would_be_found_out(study, monkeypatch, tmp_path: Path):
    """The trials can fail: with our checks taken out, sums are decrypted and the finding says so."""
    monkeypatch.setattr(TagKey, "verify_sum", lambda *args, **kwargs: None)
    monkeypatch.setattr(SumMessage, "verify", lambda *args, **kwargs: None)
    outcome = active_server.run(Setting(study, 0, True, tmp_path))
    leaking = [finding for finding in outcome.findings if finding.verdict is Verdict.LEAKS]
    assert len(leaking) >= 5
    assert all(finding.value > finding.bound for finding in leaking)


def test_the_suite_gets_a_valid_control_and_no_decryption(study, tmp_path: Path):
    outcome = active_server.run(Setting(study, 0, True, tmp_path))
    assert outcome.controls[0].valid
    assert {finding.verdict for finding in outcome.findings} == {Verdict.NOTHING_FOUND}
    assert {finding.value for finding in outcome.findings} == {0.0}
    assert len(outcome.findings) == 8
