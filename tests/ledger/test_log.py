"""Parties that tell different stories of one study are found out."""

from __future__ import annotations

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.entries import KeyEpoch, RoundClosed
from secure_triplay.ledger.log import AuditLog, cross_check
from secure_triplay.privacy.mechanisms import DpSgdCharge

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY = "a" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")


def closed(round=1, took_part=("north", "south"), sum="1" * 64, epoch=1):
    return RoundClosed(study=STUDY, epoch=epoch, round=round, took_part=took_part, sum_sha256=sum)


@pytest.fixture
def parties(make, tmp_path, clock):
    """Two sites and a server that ran one round and agree."""
    keys = {name: SigningIdentity.generate() for name in ("north", "south", "server")}
    made = {name: make(name, signer=keys[name]) for name in ("north", "south")}
    server = AuditLog.create(tmp_path / "server", keys["server"], party="server", started_by="S", clock=clock)
    epoch = KeyEpoch(study=STUDY, epoch=1, key_id="k1", members=("north", "south"))
    for party in (*made.values(), server):
        party.record(epoch)
    for site in made.values():
        site.settle(site.reserve(CHARGE, study=STUDY, round=1), b"upload")
    for party in (*made.values(), server):
        party.record(closed())
    yield {**made, "server": server}, {name: key.identity for name, key in keys.items()}
    for party in (*made.values(), server):
        party.close()


def check(parties, keys):
    return [
        found.what
        for found in cross_check({name: party.chain.entries for name, party in parties.items()}, keys)
    ]


def test_parties_that_agree_are_not_accused(parties):
    assert check(*parties) == []


@pytest.mark.parametrize("lie", [closed(round=2, sum="2" * 64), closed(round=2, took_part=("north",))])
def test_a_party_that_tells_of_another_round_is_named(parties, lie):
    made, keys = parties
    for site in (made["north"], made["south"]):
        site.settle(site.reserve(CHARGE, study=STUDY, round=2), b"upload 2")
        site.record(closed(round=2))
    made["server"].record(lie)
    (found,) = check(made, keys)
    assert "north and south recorded" in found
    assert "server recorded" in found


def test_two_keys_under_one_epoch_are_found(parties):
    made, keys = parties
    made["north"].record(KeyEpoch(study=STUDY, epoch=2, key_id="k2", members=("north", "south")))
    made["south"].record(KeyEpoch(study=STUDY, epoch=2, key_id="other", members=("north", "south")))
    assert ["key epoch 2" in found for found in check(made, keys)] == [True]


def test_a_site_that_took_part_without_a_settled_charge_is_found(parties):
    made, keys = parties
    made["north"].settle(made["north"].reserve(CHARGE, study=STUDY, round=2), b"upload 2")
    made["south"].reserve(CHARGE, study=STUDY, round=2)  # never settled, yet its update was summed
    made["server"].record(closed(round=2))
    (found,) = check(made, keys)
    assert "south" in found
    assert "no settled charge" in found


def test_a_log_under_a_wrong_key_or_without_one_is_refused(parties):
    made, keys = parties
    logs = {name: party.chain.entries for name, party in made.items()}
    with pytest.raises(CryptoError, match="log of north"):
        cross_check(logs, {**keys, "north": keys["south"]})
    with pytest.raises(CryptoError):
        cross_check(logs, {name: key for name, key in keys.items() if name != "server"})
    with pytest.raises(CryptoError):
        cross_check({}, {})


def test_the_server_can_keep_a_log_without_a_module_that_trains_or_accounts(fresh_imports):
    loaded = fresh_imports("secure_triplay.ledger.log")
    assert not loaded & {"torch", "opacus", "dp_accounting", "tenseal", "secure_triplay.privacy"}
    assert not fresh_imports("secure_triplay.ledger.anchor") & {
        "torch",
        "dp_accounting",
        "secure_triplay.privacy",
    }
