"""Who takes part changes, on a real SuperLink and real SuperNodes: one site fewer, then a new one, with new keys."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secure_triplay.client.keys import load_keys
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.packing import unpack60
from secure_triplay.deploy.server.app import PLAN, epoch_folder
from secure_triplay.deploy.server.coordinator import change_roster, stop_study
from secure_triplay.deploy.site.light import N_PARAMS, update_of
from secure_triplay.deploy.site.worker import STATE
from secure_triplay.errors import CryptoError
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.ledger.ledger import TRAINING, Ledger
from secure_triplay.server.app import CLOSED_FOLDER
from secure_triplay.server.archive import Archive
from secure_triplay.wire import SessionPlan, SumMessage, unpack_tags

from .conftest import Federation, running

pytestmark = pytest.mark.timeout(1200)  # a busy machine needs more than half of that
NAMES, FOUNDERS, REMOVED, ADDED = (
    ("north", "east", "south", "west"),
    ("north", "east", "south"),
    "south",
    "west",
)
ROUNDS = 3
FOUNDING, WITHOUT, WITH = 1, 2, 3
"""The first epoch, the one without the removed site, and the one with the new site."""


def keys_of(made: Federation, name: str, epoch: int):
    """An epoch's keys as they lie at a site, or None."""
    site = made.sites[name]
    joined = JoinedStudy.open(site)
    study: Study = joined.study
    vault = Vault(joined.folder / STATE / f"epoch-{epoch}", site.storage_key, study=study.sha256, epoch=epoch)
    return load_keys(choose_codec(study, N_PARAMS).parameters, vault)


def sum_of(made: Federation, epoch: int) -> SumMessage:
    own = epoch_folder(made.server, epoch)
    plan = SessionPlan.from_bytes((own / PLAN).read_bytes())
    archive = Archive(own / CLOSED_FOLDER, plan)
    return archive.total(archive.last)


def fits(keys, total: SumMessage) -> bool:
    """Whether these keys belong to this sum: its tags verify under them."""
    try:
        keys.tag.verify_sum(
            unpack60(total.c0, len(total.tags) // 8),
            unpack_tags(total.tags),
            epoch=total.epoch,
            round_number=total.round,
            sites=[header.site for header in total.survivors],
        )
    except CryptoError:
        return False
    return True


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three key epochs, a round each, and what was seen on the way."""
    made = Federation.make(tmp_path_factory.mktemp("members"), rounds=ROUNDS, names=NAMES, enrolled=FOUNDERS)
    seen: dict[str, object] = {}

    def run_until(last: int) -> None:
        made.start_run()
        made.until(lambda: made.closed() >= last)
        stop_study(made.server)
        assert made.ended("run") == 0

    with running(made):
        made.start_server()
        for name in FOUNDERS:
            made.start_site(name)
        run_until(FOUNDING)
        change_roster(made.server, remove=[REMOVED])
        run_until(WITHOUT)
        seen["kept"] = keys_of(made, REMOVED, FOUNDING)
        change_roster(made.server, add=[made.sites[ADDED].enrolment_file])
        for name in made.server.bundle.members:
            made.join(name)
        made.start_site(ADDED)
        made.start_run()
        assert made.ended("run") == 0
        seen["adapters"] = made.adapters("north", "east", ADDED)
        seen["late"] = keys_of(made, ADDED, WITH)
        yield made, seen


def test_each_round_is_summed_over_the_roster_of_its_epoch(study):
    made, _ = study
    survivors = made.survivors()
    assert len(survivors) == ROUNDS
    assert set(survivors[0]) <= set(FOUNDERS)
    assert set(survivors[1]) <= set(FOUNDERS) - {REMOVED}
    assert set(survivors[2]) <= set(NAMES) - {REMOVED}
    assert all(len(names) >= 2 for names in survivors)


def test_who_is_left_ends_with_the_right_adapter_and_the_new_site_has_the_same(study):
    made, seen = study
    expected = np.zeros(N_PARAMS)
    for names in made.survivors():
        expected += np.mean([update_of(name) for name in names], axis=0)
    found = seen["adapters"]
    assert all((one == found[0]).all() for one in found)
    assert np.abs(found[0] - expected).max() < ROUNDS * 0.01 / 2**8


def test_a_removed_site_cannot_open_what_comes_after(study):
    made, seen = study
    assert fits(seen["kept"], sum_of(made, FOUNDING)), "the control: it could open what came before"
    assert not fits(seen["kept"], sum_of(made, WITHOUT))
    assert keys_of(made, REMOVED, WITHOUT) is keys_of(made, REMOVED, WITH) is None


def test_a_new_site_cannot_open_what_came_before(study):
    made, seen = study
    assert fits(seen["late"], sum_of(made, WITH)), "the control: it can open what came after"
    assert not any(fits(seen["late"], sum_of(made, epoch)) for epoch in (FOUNDING, WITHOUT))
    assert all(keys_of(made, ADDED, epoch) is None for epoch in (FOUNDING, WITHOUT))


def test_the_state_that_a_new_site_gets_was_confirmed_by_a_quorum(study):
    made, _ = study
    lines = (epoch_folder(made.server, WITH) / "ceremony.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {event["site"] for event in events if event["event"] == "confirmed"} == {"north", "east"}
    assert [event["site"] for event in events if event["event"] == "state"] == [ADDED]


def test_old_keys_are_gone_from_the_sites_that_go_on(study):
    made, _ = study
    assert all(
        keys_of(made, name, epoch) is None for name in ("north", "east") for epoch in (FOUNDING, WITHOUT)
    )


def test_a_site_is_charged_for_the_rounds_of_its_own_epochs_and_no_others(study):
    made, _ = study
    charged = {}
    for name in NAMES:
        with Ledger.open(made.sites[name].ledger, None) as ledger:
            rounds = [one.round for one in ledger.books.reservations.values() if one.what == TRAINING]
        charged[name] = sorted(rounds)
    assert charged["north"] == charged["east"] == [1, 2, 3]
    assert charged[ADDED] == [3]
    # the second was reserved in the first round, and is not given back
    assert set(charged[REMOVED]) <= {1, 2}
