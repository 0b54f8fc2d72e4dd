"""What was really held against each other is counted, and what one record lacks is named."""

from __future__ import annotations

import json
import shutil

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import RunError
from secure_triplay.ledger.compare import compare, require_each_once, verify_any
from secure_triplay.ledger.entries import KeyEpoch, RoundClosed
from secure_triplay.ledger.export import export
from secure_triplay.ledger.log import AuditLog, numbers
from secure_triplay.ledger.logbundle import VerifiedLog, export_log
from secure_triplay.ledger.overlap import overlap
from tests.ledger.conftest import CHARGE, OTHER, STUDY
from tests.ledger.witnessing import Member
from tests.test_cli import assert_plain_error, run

EPOCH = KeyEpoch(study=STUDY, epoch=1, key_id="k1", members=("north", "south"))


def closed(round, took_part=("north", "south"), epoch=1):
    return RoundClosed(study=STUDY, epoch=epoch, round=round, took_part=took_part, sum_sha256=f"{round}" * 64)


BOTH = (closed(1), closed(2))


@pytest.fixture
def keys():
    return {name: SigningIdentity.generate() for name in ("north", "south", "east", "server", "stranger")}


@pytest.fixture
def site(make, tmp_path, keys, clock):
    """Evidence of a site that was in these key epochs, paid for rounds, and recorded the sums that it opened."""

    def build(name, opened=BOTH, paid=(1, 2), epochs=(EPOCH,)):
        with make(name, signer=keys[name]) as ledger:
            for number in paid:
                ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=number), b"%d" % number)
            for body in (*epochs, *opened):
                ledger.record(body)
        out = tmp_path / "out" / name
        return export(tmp_path / name, out, keys[name], second_accountant=False, clock=clock)

    return build


@pytest.fixture
def log(tmp_path, keys, clock):
    """The log of a party without a budget, with these entries in it."""

    def build(*bodies, name="server"):
        with AuditLog.create(
            tmp_path / name, keys[name], party=name, started_by="Ms. Lead", clock=clock
        ) as made:
            for body in bodies:
                made.record(body)
        return export_log(tmp_path / name, tmp_path / "out" / name, keys[name], clock=clock)

    return build


def told(*bundles):
    verified = [verify_any(bundle) for bundle in bundles]
    return [found.what for found in compare(verified)], overlap(verified)


def verify(*bundles, code=0):
    done = run("audit", "verify", *map(str, bundles))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_records_of_the_same_rounds_are_counted(site, log):
    differ, common = told(site("north"), site("south"), log(EPOCH, closed(1), closed(2)))
    assert differ == []
    assert (common.rounds, common.key_epochs, common.charges, common.heads) == (2, 1, 4, 0)
    assert (common.absent, common.apart) == ((), ())


def test_a_verdict_says_how_much_was_held_against_each_other(site, log):
    bundles = site("north"), site("south"), log(EPOCH, closed(1), closed(2))
    assert "2 rounds, 1 key epoch, 0 countersigned heads, 4 charges; they agree" in verify(*bundles)
    said = json.loads(run("audit", "verify", "--json", *map(str, bundles)).stdout)
    assert (said["held_against_each_other"]["rounds"], said["held_against_each_other"]["apart"]) == (2, [])


def test_a_log_cut_to_its_beginning_is_not_said_to_agree(site, log):
    shown = verify(site("north"), site("south"), log(), code=2)
    assert "NOT COMPARED  server" in shown
    assert "server says nothing of study aaaaaaaaaaaa, of which north and south recorded rounds 1-2" in shown


def test_a_strangers_log_is_not_said_to_agree(site, log):
    stranger = log(
        KeyEpoch(study=OTHER, epoch=1, key_id="k", members=("west",)),
        RoundClosed(study=OTHER, epoch=1, round=1, took_part=("west",), sum_sha256="1" * 64),
        name="stranger",
    )
    shown = verify(site("north"), stranger, code=2)
    assert "Nothing was held against each other" in shown
    assert "NOT COMPARED  stranger" in shown
    assert "agree" not in shown.replace("disagree", "")


def test_rounds_that_sites_opened_and_the_servers_log_lacks_are_a_disagreement(site, log):
    shown = verify(site("north"), site("south"), log(EPOCH), code=7)
    assert "DISAGREE" in shown
    assert "server has no rounds 1-2 of study aaaaaaaaaaaa, which north and south opened" in shown
    assert "they agree" not in shown


def test_a_round_that_the_servers_log_leaves_out_between_two_is_found(site, log):
    north = site("north", [closed(1), closed(2), closed(3)], paid=(1, 2, 3))
    differ, _ = told(north, log(EPOCH, closed(1), closed(3)))
    (found,) = differ
    assert "server has no round 2 of" in found


def test_a_site_that_joined_later_is_not_asked_for_the_rounds_before(site, log):
    later = KeyEpoch(study=STUDY, epoch=2, key_id="k2", members=("north", "east"))
    last = closed(3, ("north", "east"), epoch=2)
    server = log(EPOCH, closed(1), closed(2), later, last)
    north = site("north", [closed(1), closed(2), last], (1, 2, 3), (EPOCH, later))
    differ, common = told(north, site("east", [last], (3,), (later,)), server)
    assert differ == []
    assert common.absent == ()
    assert common.rounds == 3


def test_a_site_that_paid_and_left_before_the_sum_is_named_and_not_accused(site, log):
    differ, common = told(site("north"), site("south", [closed(1)]), log(EPOCH, closed(1), closed(2)))
    assert differ == []
    (said,) = common.absent
    assert said.startswith(
        "south did not record round 2 of study aaaaaaaaaaaa, as north and server did: it took part"
    )


def test_a_member_that_was_away_is_named_and_not_accused(site, log):
    differ, common = told(site("south", (), ()), log(EPOCH, closed(1, ("north",))))
    assert differ == []
    (said,) = common.absent
    assert said.startswith(
        "south did not record round 1 of study aaaaaaaaaaaa, as server did: it was a member"
    )


def test_the_same_bundle_is_not_held_against_itself(site, tmp_path):
    north = site("north")
    shutil.copytree(north, tmp_path / "copy")
    for again in (north, tmp_path / "copy"):
        with pytest.raises(RunError, match="given twice"):
            require_each_once([north, again], [verify_any(north), verify_any(again)])
    assert_plain_error(run("audit", "verify", str(north), str(north)), 9, "given twice", str(north))


def test_an_earlier_bundle_of_a_site_is_held_against_its_later_one(site, tmp_path, keys, clock):
    early = site("north")
    late = export(tmp_path / "north", tmp_path / "late", keys["north"], second_accountant=False, clock=clock)
    differ, common = told(late, early)
    assert differ == []
    assert common.entries == len(verify_any(early).chain)
    assert common.apart == ()


def test_a_log_is_shown_with_the_key_that_signed_it(log, keys):
    server, fingerprint = log(EPOCH), keys["server"].identity.fingerprint
    assert f"Signed by {fingerprint}: compare this" in verify(server)
    said = json.loads(run("audit", "verify", "--json", str(server)).stdout)
    assert said["bundles"][0]["fingerprint"] == fingerprint


def test_evidence_in_json_names_the_key_that_signed_it(site, keys):
    said = json.loads(run("audit", "verify", "--json", str(site("north"))).stdout)
    assert said["bundles"][0]["fingerprint"] == keys["north"].identity.fingerprint
    assert said["held_against_each_other"] is None


def test_a_sites_ledger_does_not_pass_for_a_log_whose_budget_nobody_checks(make, tmp_path, identity, clock):
    with make("site"):
        pass
    shutil.copy(tmp_path / "site" / "ledger.sqlite", tmp_path / "site" / "log.sqlite")
    out = export_log(tmp_path / "site", tmp_path / "out", identity, clock=clock)
    assert_plain_error(run("audit", "verify", str(out)), 6, "site's ledger", str(out), "budget export")


def test_rounds_are_named_in_runs():
    assert numbers([3]) == "round 3"
    assert numbers([4, 1, 2, 3, 6]) == "rounds 1-4, 6"


def test_heads_that_others_countersigned_are_counted_once(make, tmp_path, keys, clock):
    with make("north", signer=keys["north"]) as north, make("south", signer=keys["south"]) as south:
        own = Member(north.chain, keys["north"], [keys["south"].identity], clock)
        own.exchange(Member(south.chain, keys["south"], [keys["north"].identity], clock))
        chains = north.chain.entries, south.chain.entries

    records = [
        VerifiedLog(name, keys[name].identity, chain)
        for name, chain in zip(("north", "south"), chains, strict=True)
    ]
    common = overlap(records)
    assert (common.heads, common.apart) == (1, ())
