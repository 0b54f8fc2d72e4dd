"""Membership over key epochs: the real server loop and the real workers, with Flower's grid replaced by a dictionary.

Folders, keys, ledgers, ciphertexts, the summing process and every message are real; nothing of Flower runs.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from flwr.supercore.task_identity import TaskIdentity

from secure_triplay import parcel
from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.journal import Journal
from secure_triplay.client.kept import ROUND, keep_revealed, keep_update
from secure_triplay.client.keys import load_keys
from secure_triplay.client.round import Learned
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.double import DoubleSigner
from secure_triplay.crypto.masking.messages import MaskKeys
from secure_triplay.deploy.server.app import FINISHED, PAUSE, PAUSED, epoch_folder, run_study
from secure_triplay.deploy.server.coordinator import change_roster, finished, status
from secure_triplay.deploy.site.ceremony import RECIPIENT
from secure_triplay.deploy.site.light import N_PARAMS, Fixed, update_of
from secure_triplay.deploy.site.worker import STATE, SiteWorker
from secure_triplay.errors import ProtocolError, RunError
from secure_triplay.federation.ceremony import Deliver, Summon
from secure_triplay.federation.documents import keys_of
from secure_triplay.federation.handover import StateGiven, StateWanted, needed
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.studybundle import StudyBundle
from secure_triplay.ledger.books import Reservation
from secure_triplay.ledger.ledger import TRAINING, Ledger
from secure_triplay.ledger.start import adopt
from secure_triplay.ledger.study import CLASS_COUNTS
from secure_triplay.policy import read_policy
from secure_triplay.wire import Unmask, Witness

from .conftest import Federation, study_content

NAMES = ("north", "east", "south", "west")
ROUNDS = 4


class DictionaryGrid:
    """Flower's grid as far as the server uses it; a node is a worker in this process."""

    def __init__(self, made: Federation) -> None:
        self.made, self.numbers = made, itertools.count(1)
        self.nodes: dict[int, str] = {}
        self.workers: dict[str, SiteWorker] = {}
        self.replies: dict[str, SimpleNamespace] = {}
        self.heard: list[tuple[str, bytes]] = []
        self.pause_after: int | None = None
        self.alter = lambda site, request: request

    def start(self, name: str) -> None:
        """Start a worker, or start it again from its folder alone."""
        site = self.made.sites[name]
        joined = JoinedStudy.open(site)
        if name in self.workers:
            self.workers[name].close()
        else:
            self.nodes[next(self.numbers)] = name
        self.workers[name] = SiteWorker(site, joined, Fixed(joined.study, name), Journal(joined.folder))

    def stop(self, name: str) -> None:
        self.workers.pop(name).close()
        self.nodes = {node: site for node, site in self.nodes.items() if site != name}

    def answer(self, name: str, request: bytes) -> bytes:
        return self.workers[name].answer(request)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable) -> list[str]:
        pushed = []
        for message in messages:
            name = self.nodes[message.metadata.dst_node_id]
            request = self.alter(name, parcel.unpack(message.content))
            self.heard.append((name, request))
            reply = self.answer(name, request)
            number = str(next(self.numbers))
            self.replies[number] = SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=number),
                content=parcel.pack(reply),
                has_error=lambda: False,
            )
            pushed.append(number)
        if self.pause_after is not None and self.made.closed() >= self.pause_after:
            (self.made.server.path / "rounds" / PAUSE).write_bytes(b"")
        return pushed

    def pull_messages(self, numbers: Iterable[str]) -> list[SimpleNamespace]:
        return [self.replies.pop(number) for number in list(numbers) if number in self.replies]

    def run(self, until: int | None = None) -> None:
        """Run the study, and stop between two rounds once round `until` was closed."""
        rounds = self.made.server.path / "rounds"
        for name in (PAUSE, PAUSED):
            (rounds / name).unlink(missing_ok=True)
        self.pause_after = until
        run_study(self, self.made.server)
        assert (rounds / (FINISHED if until is None else PAUSED)).exists()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)  # Flower stamps it on every message
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    for name, seconds in {"DECLINED_S": 0.01, "_TICK_S": 0.01, "_NODES_S": 0.01}.items():
        monkeypatch.setattr(f"secure_triplay.deploy.server.epochstart.{name}", seconds)
    monkeypatch.setattr("secure_triplay.deploy.server.app._CEREMONY_S", 300.0)
    monkeypatch.setattr("secure_triplay.deploy.server.app._RETRY_S", 0.05)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Three sites of a study for four: joined and confirmed."""
    before = os.umask(0o077)
    folder = tmp_path_factory.mktemp("epochs")
    Federation.make(folder, rounds=ROUNDS, names=NAMES, enrolled=NAMES[:3], deadline_s=15.0)
    yield folder
    os.umask(before)


@pytest.fixture
def grid(template: Path, tmp_path: Path) -> DictionaryGrid:
    made = Federation.copy(template, tmp_path / "world", NAMES)
    grid = DictionaryGrid(made)
    for name in NAMES[:3]:
        grid.start(name)
    return grid


def adapters(grid: DictionaryGrid, *names: str) -> list[np.ndarray]:
    return [grid.workers[name].session.state.published for name in names]


def expected(grid: DictionaryGrid) -> np.ndarray:
    total = np.zeros(N_PARAMS)
    for names in grid.made.survivors():
        total += np.mean([update_of(name) for name in names], axis=0)
    return total


def vault(grid: DictionaryGrid, name: str, epoch: int) -> Vault:
    site = grid.made.sites[name]
    joined = JoinedStudy.open(site)
    folder = joined.folder / STATE / f"epoch-{epoch}"
    return Vault(folder, site.storage_key, study=joined.study.sha256, epoch=epoch)


def key(grid: DictionaryGrid, name: str, epoch: int) -> bytes | None:
    codec = grid.workers[name]._learns.codec
    keys = load_keys(codec.parameters, vault(grid, name, epoch))
    return None if keys is None else keys.key_id + keys.ckks.to_envelope_bytes()


def test_a_study_goes_on_over_a_new_key_as_if_nothing_had_happened(grid):
    grid.run(until=2)
    first = key(grid, "north", 1)
    change_roster(grid.made.server)
    grid.run()
    assert finished(grid.made.server)
    assert key(grid, "north", 2) not in (None, first)
    found = adapters(grid, *NAMES[:3])
    assert all((one == found[0]).all() for one in found)
    assert np.abs(found[0] - expected(grid)).max() < ROUNDS * 0.01 / 2**8


def test_the_old_epochs_keys_are_gone_once_the_new_one_begins(grid):
    grid.run(until=2)
    assert key(grid, "east", 1) is not None
    folders = [JoinedStudy.open(grid.made.sites[name]).folder / STATE / "epoch-1" for name in NAMES[:3]]
    held = ("update", "upload", "sum", "mask-*")  # what may lie there while a round is open
    assert {what for what in held for folder in folders if list(folder.glob(what))} >= {"upload", "mask-*"}
    keep_update(
        vault(grid, "east", 1), ROUNDS, Learned(np.zeros(N_PARAMS, np.int64))
    )  # of no round that comes
    change_roster(grid.made.server)
    grid.run(until=3)
    for name, folder in zip(NAMES[:3], folders, strict=True):
        assert key(grid, name, 1) is None
        assert not [path.name for what in held for path in folder.glob(what)]
        assert vault(grid, name, 2).load(RECIPIENT) is None


def test_the_old_epochs_keys_are_gone_where_a_site_was_killed_just_before_it_destroyed_them(
    grid, monkeypatch
):
    stopped_in_round_2(grid, Witness)
    change_roster(grid.made.server)
    summon = summoned_to(grid, epoch=2)
    plain = Vault.destroy

    def killed(self: Vault, name: str) -> None:
        if name == "keys":
            raise KeyboardInterrupt
        plain(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "destroy", killed)
        with pytest.raises(KeyboardInterrupt):
            grid.workers["east"]._follow(summon)
    assert JoinedStudy.open(grid.made.sites["east"]).bundle.epoch == 2
    assert key(grid, "east", 1) is not None
    grid.start("east")
    assert key(grid, "east", 1) is None
    left = {path.name for path in (grid.workers["east"]._joined.folder / STATE / "epoch-1").iterdir()}
    assert not {name for name in left if name.startswith(("keys", "upload", "update", "sum", "mask-"))}


def test_a_removed_site_gets_no_envelope_and_holds_no_later_key(grid):
    grid.run(until=2)
    change_roster(grid.made.server, remove=["south"])
    grid.heard.clear()
    grid.run()
    assert grid.made.survivors()[2:] == [["east", "north"]] * 2
    assert grid.workers["south"].session.state.round < ROUNDS
    assert key(grid, "south", 2) is None
    assert not [request for name, request in grid.heard if name == "south" and request[5] == Deliver.kind]
    assert len({one.tobytes() for one in adapters(grid, "north", "east")}) == 1


def test_a_new_site_ends_with_the_same_adapter_and_never_held_an_earlier_key(grid):
    grid.run(until=2)
    change_roster(grid.made.server, add=[grid.made.sites["west"].enrolment_file])
    for name in NAMES:
        grid.made.join(name)
    grid.start("west")
    grid.run()
    found = adapters(grid, *NAMES)
    assert all((one == found[0]).all() for one in found)
    assert grid.made.survivors()[2:] == [["east", "north", "south", "west"]] * 2
    assert np.abs(found[0] - expected(grid)).max() < ROUNDS * 0.01 / 2**8
    assert key(grid, "west", 1) is None
    with Ledger.open(grid.made.sites["west"].ledger, None) as ledger:
        rounds = [made.round for made in ledger.books.reservations.values() if made.what == TRAINING]
    assert rounds == [3, 4]


def test_a_new_site_takes_no_state_that_a_quorum_did_not_confirm(grid):
    grid.run(until=1)
    change_roster(grid.made.server, add=[grid.made.sites["west"].enrolment_file])
    for name in NAMES:
        grid.made.join(name)
    grid.start("west")

    def fewer(site: str, request: bytes) -> bytes:
        if request[5:6] != bytes([StateGiven.kind]):
            return request
        given = StateGiven.from_bytes(request)
        return StateGiven(given.study, given.epoch, given.round, given.confirmed[:1], given.sealed).to_bytes()

    grid.alter = fewer
    grid.run(until=2)
    assert grid.workers["west"].session is None
    assert grid.made.survivors()[1] == ["east", "north", "south"]


def test_a_state_is_confirmed_by_more_than_half_of_those_that_have_it():
    for sites in range(1, 60):
        assert sites < 2 * needed(sites) <= sites + 2


def test_a_new_site_takes_no_state_that_was_changed_on_its_way(grid):
    grid.run(until=1)
    change_roster(grid.made.server, add=[grid.made.sites["west"].enrolment_file])
    for name in NAMES:
        grid.made.join(name)
    grid.start("west")
    grid.alter = lambda site, request: (
        request[:-1] + bytes([request[-1] ^ 1]) if request[5:6] == bytes([StateGiven.kind]) else request
    )
    grid.run(until=2)
    assert grid.workers["west"].session is None


def test_nobody_new_gets_a_key_before_a_person_at_every_site_confirmed(grid, monkeypatch):
    grid.run(until=1)
    change_roster(grid.made.server, add=[grid.made.sites["west"].enrolment_file])
    for name in ("north", "east", "west"):  # south's people did not
        grid.made.join(name)
    grid.start("west")
    monkeypatch.setattr("secure_triplay.deploy.server.app._CEREMONY_S", 1.0)
    with pytest.raises(RunError, match="south did not answer"):
        grid.run()
    assert not [request for name, request in grid.heard if request[5] == Deliver.kind and b"west" in request]
    assert grid.workers["west"].session is None


def test_a_site_that_was_away_when_the_epoch_ended_catches_up_before_it_takes_part(grid):
    grid.run(until=1)
    change_roster(grid.made.server)
    behind = grid.workers["south"].session.state.round
    assert behind == 0  # it has signed the sum, and not yet been told that a quorum did
    grid.run(until=2)
    assert {grid.workers[name].session.state.round for name in NAMES[:3]} >= {1}
    grid.run()
    found = adapters(grid, *NAMES[:3])
    assert all((one == found[0]).all() for one in found)


def test_workers_that_start_again_from_their_folders_go_on_in_every_epoch(grid):
    grid.run(until=1)
    for name in NAMES[:3]:
        grid.start(name)
    change_roster(grid.made.server)
    grid.run(until=2)
    for name in NAMES[:3]:
        grid.start(name)
    grid.run()
    found = adapters(grid, *NAMES[:3])
    assert all((one == found[0]).all() for one in found)
    assert np.abs(found[0] - expected(grid)).max() < ROUNDS * 0.01 / 2**8


def test_the_roster_does_not_change_while_the_study_runs(grid, monkeypatch):
    grid.run(until=1)
    monkeypatch.setattr("secure_triplay.deploy.server.coordinator.is_running", lambda folder: True)
    with pytest.raises(RunError, match="running"):
        change_roster(grid.made.server)


def stopped_in_round_2(grid: DictionaryGrid, kind: type) -> None:
    """`kill -9` of the server when it first sends such a message of round 2: that round stays open."""

    def until(site: str, request: bytes) -> bytes:
        if request[5:6] == bytes([kind.kind]) and kind.from_bytes(request).round == 2:
            raise KeyboardInterrupt
        return request

    plain, grid.alter = grid.alter, until
    with pytest.raises(KeyboardInterrupt):
        grid.run(until=4)
    grid.alter = plain


def charged(grid: DictionaryGrid, name: str) -> list[int]:
    with Ledger.open(grid.made.sites[name].ledger, None) as ledger:
        return sorted(one.round for one in ledger.books.reservations.values() if one.what == TRAINING)


def test_an_open_round_does_not_keep_the_roster_from_changing_and_is_repeated_without_a_second_charge(grid):
    """All sites sent their updates, the sum was made, and nobody signed it; then a site is gone for good."""
    stopped_in_round_2(grid, Witness)
    sent = {name: vault(grid, name, 1).load("upload") for name in NAMES[:3]}
    assert all(sent.values())
    grid.stop("south")
    change_roster(grid.made.server, remove=["south"])
    grid.run()
    found = adapters(grid, "north", "east")
    assert (found[0] == found[1]).all()
    total = sum(
        np.mean([update_of(name) for name in names], axis=0)
        for names in [NAMES[:3], NAMES[:2], NAMES[:2], NAMES[:2]]
    )
    assert np.abs(found[0] - total).max() < ROUNDS * 0.01 / 2**8
    assert charged(grid, "north") == charged(grid, "east") == [1, 2, 3, 4]


def test_what_a_site_sends_again_under_a_new_key_are_the_very_integers_that_it_released_before(grid):
    stopped_in_round_2(grid, Witness)
    before = {name: vault(grid, name, 1).load("update") for name in NAMES[:3]}
    uploads = {name: vault(grid, name, 1).load("upload") for name in NAMES[:3]}
    change_roster(grid.made.server)
    grid.alter = lambda site, request: request
    stopped_in_round_2(grid, Witness)
    for name in NAMES[:3]:
        assert vault(grid, name, 2).load("update") == before[name] is not None
        assert vault(grid, name, 2).load("upload") not in (None, uploads[name])
        assert vault(grid, name, 1).load("update") is None


def test_an_update_whose_sum_a_site_helped_to_open_enters_no_other_sum_under_a_later_key(grid):
    """One site revealed shares for the sum of round 2; then the server says that round 2 never was, and asks anew."""
    asked: list[str] = []

    def until_one_revealed(site: str, request: bytes) -> bytes:
        if request[5:6] == bytes([Unmask.kind]) and Unmask.from_bytes(request).round == 2:
            asked.append(site)
            if len(asked) == 2:
                raise KeyboardInterrupt
        return request

    grid.alter = until_one_revealed
    with pytest.raises(KeyboardInterrupt):
        grid.run(until=4)
    revealing, silent = asked
    (lost,) = grid.made.server.path.rglob("*2.approvals*")
    lost.unlink()
    change_roster(grid.made.server)
    summon = summoned_to(grid, epoch=2)
    assert summon.base == 1
    with pytest.raises(ProtocolError, match="revealed what takes the masks off the sum of round 2"):
        grid.workers[revealing]._follow(summon)
    assert vault(grid, revealing, 2).load("carried") is None
    grid.workers[silent]._follow(summon)  # the others' updates were in no sum that could be opened
    assert vault(grid, silent, 2).load("carried") is not None


def summoned_to(grid: DictionaryGrid, *, epoch: int) -> Summon:
    """What the server says when it begins this epoch; nobody hears it."""
    found: list[Summon] = []

    def until_summoned(site: str, request: bytes) -> bytes:
        if request[5:6] == bytes([Summon.kind]) and Summon.from_bytes(request).epoch == epoch:
            found.append(Summon.from_bytes(request))
            raise KeyboardInterrupt
        return request

    plain, grid.alter = grid.alter, until_summoned
    with pytest.raises(KeyboardInterrupt):
        grid.run(until=4)
    grid.alter = plain
    return found[0]


def test_an_update_that_was_sent_goes_on_through_an_epoch_that_ends_before_its_first_round(grid, monkeypatch):
    """Round 2 is open; the ceremony of epoch 2 waits for a site that is gone; in epoch 3 it is removed."""
    stopped_in_round_2(grid, Witness)
    before = {name: vault(grid, name, 1).load("update") for name in NAMES[:2]}
    grid.stop("south")
    change_roster(grid.made.server)
    with monkeypatch.context() as patch:
        patch.setattr("secure_triplay.deploy.server.app._CEREMONY_S", 1.0)
        with pytest.raises(RunError, match="south did not answer"):
            grid.run()
    change_roster(grid.made.server, remove=["south"])
    summon = summoned_to(grid, epoch=3)
    for name in NAMES[:2]:
        grid.workers[name]._follow(summon)
        assert vault(grid, name, 3).load("carried") == ROUND.pack(2)
        assert vault(grid, name, 3).load("update") == before[name] is not None


def test_what_leaves_under_a_new_key_is_settled_before_where_a_stop_had_left_it_unsettled(grid, monkeypatch):
    """`kill -9` between the encryption of round 2 and its settling; then a new epoch begins."""
    plain = LedgerAccounts.settle

    def killed(self: LedgerAccounts, reservation: Reservation, content: bytes) -> None:
        if reservation.round == 2:
            raise KeyboardInterrupt
        plain(self, reservation, content)

    with monkeypatch.context() as patch:
        patch.setattr(LedgerAccounts, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            grid.run()
    (cut,) = [name for name in NAMES[:3] if vault(grid, name, 1).load("upload")[:8] == ROUND.pack(2)]
    grid.start(cut)
    change_roster(grid.made.server)
    stopped_in_round_2(grid, Witness)
    sent = vault(grid, cut, 2).load("upload")
    with Ledger.open(grid.made.sites[cut].ledger, None) as ledger:
        (held,) = [one for one in ledger.books.reservations.values() if one.round == 2]
    assert held.released_sha256 == hashlib.sha256(sent[8:]).hexdigest()


def test_a_later_epoch_that_this_site_does_not_follow_finds_nothing_of_an_open_round_taken_into_it(grid):
    """A bundle that the coordinator did not sign: whoever carries messages can make one."""
    stopped_in_round_2(grid, Witness)
    bundle, signer = grid.workers["north"]._joined.bundle, DoubleSigner.generate()
    made_up = bundle.model_dump() | keys_of(signer) | {"epoch": 2, "founding": bundle.sha256.hex()}
    content = StudyBundle.model_validate(made_up).signed(signer)
    with pytest.raises(ProtocolError, match="somebody or something new"):
        grid.workers["north"]._follow(Summon(bundle.study_sha256, 2, 1, False, content))
    for name in ("carried", "update", "start"):
        assert vault(grid, "north", 2).load(name) is None


def test_an_update_taken_into_an_epoch_that_did_not_begin_is_forgotten_once_the_round_went_on(
    grid, monkeypatch
):
    """`kill -9` on the way into epoch 2; the server goes on in epoch 1, and later calls the site new in epoch 2."""
    stopped_in_round_2(grid, Witness)
    change_roster(grid.made.server)
    summon = summoned_to(grid, epoch=2)
    assert summon.base == 1

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("secure_triplay.deploy.site.worker.succeed", killed)
        with pytest.raises(KeyboardInterrupt):
            grid.workers["north"]._follow(summon)
    assert vault(grid, "north", 2).load("carried") is not None
    grid.start("north")
    keep_revealed(vault(grid, "north", 1), 2)  # epoch 1 went on, and the sum of round 2 was opened
    grid.workers["north"]._follow(replace(summon, base=2, fresh=True))
    for name in ("carried", "update", "start"):
        assert vault(grid, "north", 2).load(name) is None


def test_questions_about_epochs_and_rounds_that_are_not_due_leave_nothing_on_a_sites_disk(grid):
    grid.run(until=1)
    north = grid.workers["north"]
    study, folder = north._joined.study.sha256, north._joined.folder / STATE
    before = sorted(folder.rglob("*"))
    made_up = MaskKeys("north", b"s" * 32, b"m" * 32, b"c" * 32, b"g" * 64)
    north.answer(StateWanted(study, 2**31, 0, False).to_bytes())
    north.answer(Witness(study, 1, 40, (), None, (made_up,)).to_bytes())
    assert sorted(folder.rglob("*")) == before


def holds_own(grid: DictionaryGrid, name: str, rounds: int) -> None:
    own = grid.workers[name].session.own
    assert own.count == rounds
    assert np.abs(own.total - rounds * update_of(name).astype(np.float64)).max() < 1e-12


def test_a_round_that_is_repeated_under_a_new_key_counts_once_among_a_sites_own_updates(grid):
    stopped_in_round_2(grid, Witness)
    change_roster(grid.made.server)
    for name in NAMES[:3]:
        holds_own(grid, name, 1)  # round 2 was sent, and is not closed
    grid.run()
    for name in NAMES[:3]:
        holds_own(grid, name, ROUNDS)
        grid.start(name)
        holds_own(grid, name, ROUNDS)
        assert charged(grid, name) == [1, 2, 3, 4]


def test_a_sites_own_updates_go_with_it_through_key_epochs_and_a_new_site_has_but_its_own(grid):
    grid.run(until=2)
    change_roster(grid.made.server)
    grid.start("north")
    grid.run(until=3)
    change_roster(grid.made.server, add=[grid.made.sites["west"].enrolment_file])
    for name in NAMES:
        grid.made.join(name)
    grid.start("west")
    grid.run()
    for name in NAMES[:3]:
        holds_own(grid, name, ROUNDS)
    holds_own(grid, "west", 1)
    said = [request for _, request in grid.heard]
    rows = [update_of(name)[i : i + 8].tobytes() for name in NAMES for i in range(0, N_PARAMS - 8, 8)]
    assert not [row for row in rows if any(row in request for request in said)]


@pytest.fixture
def counting(tmp_path: Path) -> DictionaryGrid:
    """Three sites, not started yet, of a study whose sites have a bias, in training as well."""
    bias = {"noise_multiplier": 4.0, "in_training": True}
    content = study_content(2, NAMES[:3]) | {"personal_bias": bias}
    return DictionaryGrid(
        Federation.make(tmp_path, rounds=2, names=NAMES[:3], deadline_s=15.0, content=content)
    )


def counts_charged(grid: DictionaryGrid, name: str) -> list[bool]:
    with Ledger.open(grid.made.sites[name].ledger, None) as ledger:
        made = [one for one in ledger.books.reservations.values() if one.what == CLASS_COUNTS]
    return [one.released_sha256 is not None for one in made]


def test_classes_are_counted_once_over_all_key_epochs_and_charged_before_the_first_round(counting):
    for name in NAMES[:3]:
        counting.start(name)
    counting.run(until=1)
    before = {name: vault(counting, name, 1).load("classes") for name in NAMES[:3]}
    change_roster(counting.made.server)
    counting.start("east")
    counting.run()
    for name in NAMES[:3]:
        assert counts_charged(counting, name) == [True]
        assert before[name] is not None
        assert vault(counting, name, 2).load("classes") == before[name]
        with Ledger.open(counting.made.sites[name].ledger, None) as ledger:
            first = min(ledger.books.reservations.values(), key=lambda one: one.counter)
        assert first.what == CLASS_COUNTS


@pytest.mark.parametrize(
    "limits",
    [
        {"epsilon_per_study": 0.5},  # less than the study asks
        {"epsilon_per_year": 20.0},  # less than the ledger counts against
        {"epsilon_per_study": 19.0},
    ],
)
def test_nothing_is_counted_or_trained_for_a_study_that_the_sites_policy_refuses_by_now(
    counting, monkeypatch, limits
):
    counted = []
    monkeypatch.setattr(
        "secure_triplay.deploy.site.worker.count_own_classes", lambda *_: counted.append("east")
    )
    for name in NAMES[:3]:
        counting.start(name)
    counting.run(until=1)
    counted.clear()
    counting.start("east")
    assert counted == ["east"]
    policy = counting.made.sites["east"].policy_file
    assert not list(counting.workers["east"]._allow(2))
    policy.write_text(yaml.safe_dump(yaml.safe_load(policy.read_text()) | limits))
    assert list(counting.workers["east"]._allow(2))
    counting.start("east")
    assert counted == ["east"]


def test_a_site_trains_with_the_counts_it_paid_for_whatever_its_policy_says_by_now_and_without_where_it_has_none(
    counting, monkeypatch
):
    biases = []
    monkeypatch.setattr(Fixed, "adjust", lambda _, bias: biases.append(bias))
    for name in NAMES[:3]:
        counting.start(name)
    counting.run(until=1)
    policy = counting.made.sites["east"].policy_file
    policy.write_text(yaml.safe_dump(yaml.safe_load(policy.read_text()) | {"epsilon_per_study": 0.5}))
    kept = np.frombuffer(vault(counting, "east", 1).load("classes"), "<f8")
    biases.clear()
    counting.start("east")
    raised = np.maximum(kept, 4.0)  # a count below its noise tells nothing
    assert biases[-1] == pytest.approx(1.5 * np.log(raised / raised.sum()), abs=1e-5)
    (said,) = [event for event in counting.made.events("east") if event["event"] == "no class counts"]
    assert "policy: " in said["what"]
    assert "restart" in said["what"]
    vault(counting, "east", 1).destroy("classes")
    counting.start("east")
    assert biases[-1] is None


def test_a_tightened_budget_binds_a_running_study_once_a_person_puts_it_in_force(counting):
    for name in NAMES[:3]:
        counting.start(name)
    site, east = counting.made.sites["east"], counting.workers["east"]
    content = yaml.safe_load(site.policy_file.read_text()) | {"epsilon_per_year": 20.0}
    site.policy_file.write_text(yaml.safe_dump(content))
    assert "budget adopt" in next(iter(east._allow(1)))
    adopt(site.path, read_policy(site.policy_file), approved_by="Dr. east")
    assert not list(east._allow(1))
    with Ledger.open(site.ledger, None) as ledger:
        assert ledger.books.limits.epsilon_per_year == 20.0


def test_a_study_may_be_stopped_and_lose_a_site_that_never_came(grid):
    """The first ceremony waits for south; it is stopped, and the study goes on without that site."""
    grid.stop("south")
    rounds = grid.made.server.path / "rounds"
    plain = grid.push_messages

    def stop_when_it_waits(messages: Iterable) -> list[str]:
        pushed = plain(messages)
        (rounds / PAUSE).write_bytes(b"")
        return pushed

    grid.push_messages = stop_when_it_waits
    run_study(grid, grid.made.server)
    grid.push_messages = plain
    assert (rounds / PAUSED).exists()
    change_roster(grid.made.server, remove=["south"])
    grid.run()
    assert grid.made.survivors() == [["east", "north"]] * ROUNDS
    found = adapters(grid, "north", "east")
    assert (found[0] == found[1]).all()
    assert np.abs(found[0] - expected(grid)).max() < ROUNDS * 0.01 / 2**8


def test_the_coordinator_is_told_for_whom_the_ceremony_waits(grid, monkeypatch):
    grid.stop("south")
    monkeypatch.setattr("secure_triplay.deploy.server.epochstart._WAITING_S", 0.05)
    monkeypatch.setattr("secure_triplay.deploy.server.app._CEREMONY_S", 1.0)
    with pytest.raises(RunError, match="south did not answer") as found:
        grid.run()
    assert "study remove" in found.value.fix
    monkeypatch.setattr("secure_triplay.deploy.server.coordinator.is_running", lambda folder: True)
    assert "waits for south" in status(grid.made.server)["waiting"]


def test_status_tells_where_the_study_stands(grid):
    grid.run(until=2)
    found = status(grid.made.server)
    assert (found["last_closed_round"], found["epoch"], found["finished"]) == (2, 1, False)
    assert found["last_survivors"] == ["east", "north", "south"]


def test_what_the_server_keeps_of_an_epoch_is_public(grid):
    grid.run(until=2)
    secret = key(grid, "north", 1)[32:]
    windows = [secret[i : i + 24] for i in range(64, len(secret) - 24, 997)]
    content = b"".join(
        path.read_bytes() for path in epoch_folder(grid.made.server, 1).rglob("*") if path.is_file()
    )
    assert len(content) > 10_000
    assert not [window for window in windows if window in content]


@pytest.mark.parametrize("seed", range(2))
def test_lost_messages_and_killed_workers_change_nothing(grid, seed):
    """Any request or reply is lost, any worker dies before or after it answered, in ceremony and rounds alike."""
    rng = np.random.default_rng(seed)
    plain = grid.answer

    def bad_day(name: str, request: bytes) -> bytes:
        what = rng.choice(
            ["well", "request lost", "reply lost", "killed before", "killed after"], p=[0.6] + [0.1] * 4
        )
        if what == "request lost":
            return b""
        if what == "killed before":
            grid.start(name)
        reply = plain(name, request)
        if what == "killed after":
            grid.start(name)
        return b"" if what in ("reply lost", "killed after") else reply

    def run(until: int | None) -> None:
        failed = []
        for _ in range(20):  # a round that failed is declared so, and `study run` starts the ServerApp again
            try:
                return grid.run(until)
            except RunError as error:
                failed.append(str(error))
        raise AssertionError("20 starts: " + "; ".join(dict.fromkeys(failed)))

    grid.answer = bad_day
    run(until=1)
    change_roster(grid.made.server)
    run(until=None)
    grid.answer = plain
    found = adapters(grid, *NAMES[:3])
    rounds = [grid.workers[name].session.state.round for name in NAMES[:3]]
    assert rounds.count(ROUNDS) >= 2  # whoever lost the very last message catches up when it is asked again
    last = [one for one, number in zip(found, rounds, strict=True) if number == ROUNDS]
    assert all((one == last[0]).all() for one in last)
    assert np.abs(last[0] - expected(grid)).max() < ROUNDS * 0.01 / 2**8
    for name in NAMES[:3]:
        with Ledger.open(grid.made.sites[name].ledger, None) as ledger:
            charged = [made.round for made in ledger.books.reservations.values() if made.what == TRAINING]
        assert len(charged) == len(set(charged)) <= ROUNDS
        own = grid.workers[name].session.own
        holds_own(grid, name, own.count)
        assert own.count <= len(charged)
