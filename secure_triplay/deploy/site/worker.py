"""SECRET. A real site's resident worker: one process that holds model, records and keys, and answers the shim.

    python -m secure_triplay.deploy.site.worker SITE-FOLDER STUDY

It listens before it loads, so that the first question waits instead of failing. What it needs to go on after
`kill -9` lies in the vault, under the site's storage key. Whatever goes wrong the server reads `Declined`; the
reason goes to the journal, which the operator reads.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, get_args

from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.answering import listening, serve_one
from secure_triplay.client.classes import count_own_classes, train_with_own_bias
from secure_triplay.client.journal import Journal
from secure_triplay.client.kept import carry_own, carry_update, forget_carried, require_unopened
from secure_triplay.client.keys import EpochKeys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import why_none
from secure_triplay.client.protocols import Learns, Load
from secure_triplay.client.round import Member
from secure_triplay.client.session import Session
from secure_triplay.client.vault import Vault
from secure_triplay.constants import masks_for
from secure_triplay.deploy.site.ceremony import SiteCeremony, end_epoch
from secure_triplay.deploy.site.ending import ending_plainly
from secure_triplay.deploy.site.handover import open_state, seal_state, state_sha256
from secure_triplay.deploy.site.own import write_personal
from secure_triplay.describe import describe
from secure_triplay.errors import ProtocolError, SecureTriplayError
from secure_triplay.federation.ceremony import Deliver, MakeKeys, Opened, Summon
from secure_triplay.federation.handover import Confirmed, StateGiven, StateOffered, StateWanted, needed
from secure_triplay.federation.join import JoinedStudy, refusals, require_followable, succeed
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import StudyBundle
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.study import check_budget, study_releases
from secure_triplay.memory import peak_bytes
from secure_triplay.policy import Refusal, SitePolicy, check_hours
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.report.card import write_study_card
from secure_triplay.wire import Behind, Declined, SessionPlan
from secure_triplay.wireformat import MAGIC, read

SOCKET, STATE, EVIDENCE, ADAPTER = "worker.sock", "state", "evidence", "adapter"
REPLY_AFTER_S = 0.5
"""When the answer to a sum leaves, counted from its arrival: whether it was accepted does not show in time."""
LINGER_S = 45.0
"""So long after the last question a worker whose study has ended still answers."""

_START_STATE = "start"


_Asked: TypeAlias = Summon | MakeKeys | Deliver | StateWanted | StateGiven


class SiteWorker:
    """One site's worker over all epochs of a study: bytes in, bytes out."""

    def __init__(self, site: SiteFolder, joined: JoinedStudy, learns: Learns, journal: Journal) -> None:
        self._site, self._joined, self._learns, self._journal = site, joined, learns, journal
        self._ledger = Ledger.open(site.ledger, site.identity)
        self._session: Session | None = None
        self._end_earlier_epochs()  # where a stop came between following an epoch and ending the one before
        self._begin_epoch()

    @property
    def session(self) -> Session | None:
        """The epoch's session, once its key is here."""
        return self._session

    @property
    def finished(self) -> bool:
        """Whether the last sum of the study was applied."""
        return self._session is not None and self._session.finished

    def answer(self, request: bytes) -> bytes:
        """The reply to one request, whatever it is."""
        try:
            message = self._ceremony_message(request)
            if message is not None:
                return self._in_ceremony(message)
            if self._session is not None:
                return self._session.answer(request).reply
            raise ProtocolError(
                "a round was begun before this epoch's key is here",
                where="server's message",
                fix="wait for the key ceremony",
            )
        except SecureTriplayError as error:
            self._journal.write("declined", what=error.what, where=error.where)
            return Declined().to_bytes()

    @property
    def vault(self) -> Vault:
        """What this epoch keeps."""
        return self._vault(self._joined.bundle.epoch)

    def close(self) -> None:
        """Give the ledger back."""
        self._ledger.close()

    @staticmethod
    def _ceremony_message(request: bytes) -> _Asked | None:
        kinds = {kind.kind for kind in get_args(_Asked)}
        if request[: len(MAGIC)] != MAGIC or len(request) < len(MAGIC) + 2 or request[5] not in kinds:
            return None
        message = read(request, *get_args(_Asked))
        assert isinstance(message, _Asked)
        return message

    def _in_ceremony(self, message: _Asked) -> bytes:
        if isinstance(message, StateWanted):
            return self._hand_over(message).to_bytes()
        if isinstance(message, StateGiven):
            return self._take_over(message).to_bytes()
        if isinstance(message, Summon):
            behind = self._follow(message)
            if behind is not None:
                return behind.to_bytes()
        reply = self._ceremony.answer(message).to_bytes()
        if isinstance(message, Deliver) and self._session is None:
            self._open_session()
        return reply

    def _hand_over(self, message: StateWanted) -> StateOffered:
        """Confirm this site's state to a new one, and seal it where asked."""
        of, found = (message.study, message.epoch), self._ceremony.keys()
        kept = self._vault(self._ceremony.epoch).load(_START_STATE)
        if of != (self._ceremony.study, self._ceremony.epoch) or found is None or kept is None:
            raise ProtocolError(
                "a state of another epoch is wanted", where="server's message", fix="look into the server"
            )
        state = GlobalState.from_bytes(kept)
        if state.round != message.round:
            raise ProtocolError(
                f"a state after round {message.round} is wanted, and this epoch began after {state.round}",
                where="server's message",
                fix="look into the server",
            )
        confirmed = Confirmed.signed(
            self._site.signer,
            study=message.study,
            epoch=message.epoch,
            round=state.round,
            site=self._site.name,
            state_sha256=state_sha256(state),
        )
        sealed = (
            seal_state(state, found[0], study=message.study, epoch=message.epoch) if message.give else b""
        )
        return StateOffered(message.study, message.epoch, state.round, confirmed, sealed)

    def _take_over(self, message: StateGiven) -> Opened:
        """Take the state that a quorum of old sites confirmed, where this site has none."""
        of, found = (message.study, message.epoch), self._ceremony.keys()
        if of != (self._ceremony.study, self._ceremony.epoch) or found is None:
            raise ProtocolError(
                "a state of another epoch was given", where="server's message", fix="look into the server"
            )
        if self._session is None:
            members = self._joined.bundle.identities
            due = message.require_quorum(members, needed(len(members) - 1), self._site.name)
            state = open_state(
                message.sealed, due, found[0], study=message.study, epoch=message.epoch, round=message.round
            )
            if len(state.adapter) != len(self._learns.start()):
                raise ProtocolError(
                    "the state is of another adapter", where="state hand-over", fix="look into the server"
                )
            self._vault(message.epoch).save(_START_STATE, state.to_bytes())
            self._open_session()
        return Opened.signed(
            self._site.signer,
            study=message.study,
            epoch=message.epoch,
            site=self._site.name,
            key_id=found[0].key_id,
        )

    def _follow(self, message: Summon) -> Behind | None:
        """Go on to a later epoch where that needs no person, once every round before it was applied here.

        Raises where it needs one, or where the server has lost rounds.
        """
        bundle = StudyBundle.read(message.bundle, where="server's message")
        current = self._ceremony
        anew = GlobalState.start(self._learns.start()) if message.base == 0 else None
        if bundle.epoch == current.epoch:
            if anew is not None and self._vault(current.epoch).load(_START_STATE) is None:
                self._vault(current.epoch).save(_START_STATE, anew.to_bytes())
            return None
        require_unopened(self._vault(current.epoch), message.base + 1)
        state = anew if message.fresh else self._state or anew
        if state is None and not message.fresh:
            return Behind(current.study, 0, 0)  # nothing here to go on from: the others hand the state over
        if state is not None and state.round < message.base:
            lost = self._session is None or self._session.ended
            return Behind(current.study, 0 if lost else current.epoch, state.round)
        if state is not None and state.round > message.base:
            raise ProtocolError(
                f"the server would go on after round {message.base}, and this site has applied {state.round}",
                where="server's message",
                fix="look into the server: it has lost closed rounds",
            )
        require_followable(self._site, self._joined, bundle)
        # before anything says that the epoch is another: a restart goes on either way
        later = self._vault(bundle.epoch)
        forget_carried(later, _START_STATE)
        if state is not None:
            later.save(_START_STATE, state.to_bytes())
            carry_update(self._vault(current.epoch), later, state)
        carry_own(self._vault(current.epoch), later, message.base, self._learns.codec.n_params)
        self._joined = succeed(self._site, self._joined, bundle, message.bundle)
        self._end_earlier_epochs()
        self._journal.write("epoch ended", epoch=current.epoch)
        self._begin_epoch()
        return None

    @property
    def _state(self) -> GlobalState | None:
        """What this site goes on from in the next epoch, also where this one never got a key."""
        if self._session is not None:
            return self._session.state
        vault = self._vault(self._ceremony.epoch)
        kept = vault.load("state") or vault.load(_START_STATE)
        return None if kept is None else GlobalState.from_bytes(kept)

    def _end_earlier_epochs(self) -> None:
        """Destroy the keys of every epoch before the bundle's, and what only they open."""
        for folder in (self._joined.folder / STATE).glob("epoch-*"):
            epoch = int(folder.name.removeprefix("epoch-"))
            if epoch >= self._joined.bundle.epoch:
                continue
            vault = self._vault(epoch)
            end_epoch(vault)
            for name in ("update", "upload", "sum"):
                vault.destroy(name)
            for mask in folder.glob("mask-*"):
                vault.destroy(mask.name)

    def _vault(self, epoch: int) -> Vault:
        study = self._joined.study.sha256
        folder = self._joined.folder / STATE / f"epoch-{epoch}"
        return Vault(folder, self._site.storage_key, study=study, epoch=epoch)

    def _begin_epoch(self) -> None:
        bundle = self._joined.bundle
        self._session = None
        self._ceremony = SiteCeremony(
            study=bundle.study_sha256,
            epoch=bundle.epoch,
            site=self._site.name,
            bundle_sha256=bundle.sha256,
            members=bundle.identities,
            codec=self._learns.codec,
            signer=self._site.signer,
            vault=self._vault(bundle.epoch),
        )
        self._journal.write("epoch", epoch=bundle.epoch, sites=len(bundle.members))
        if self._ceremony.keys() is not None:
            self._open_session()

    def _open_session(self) -> None:
        found = self._ceremony.keys()
        assert found is not None
        keys, plan = found
        vault = self._vault(plan.epoch)
        kept = vault.load(_START_STATE)
        if kept is None and plan.epoch > 1:
            self._journal.write("waiting", what="for the state that the other sites hand over")
            return
        start = GlobalState.start(self._learns.start()) if kept is None else GlobalState.from_bytes(kept)
        self._session = Session(self._member(keys, plan, start.round), vault, start)
        self._journal.write(
            "keys", key_id=keys.key_id.hex(), epoch=plan.epoch, round=self._session.state.round
        )

    def _member(self, keys: EpochKeys, plan: SessionPlan, base: int) -> Member:
        study, bundle = self._joined.study, self._joined.bundle
        accounts = LedgerAccounts(self._ledger, self._site.identity, plan, study_releases(study))
        accounts.joined(plan)
        if study.personal_bias is not None:
            refused = self._refusals(self._site.policy)
            if refused:
                self._journal.write(
                    "no class counts", what=f"policy: {refused[0]}; restart once it allows them"
                )
            else:
                count_own_classes(study, self._vault(plan.epoch), accounts, self._learns, self._journal)
        train_with_own_bias(study, self._vault(plan.epoch), self._learns)
        return Member(
            name=self._site.name,
            plan=plan,
            codec=self._learns.codec,
            weights={site.name: site.weight for site in study.sites},
            quorum=bundle.rules.quorum,
            rounds=study.total_rounds,
            optimiser=study.server_optimiser,
            learner=self._learns.trainer,
            noise=NoiseSource(),
            identity=self._site.identity,
            keys=keys,
            accounts=accounts,
            note=self._journal.write,
            allow=self._allow,
            base=base,
            published=self._learns.published,
            masking=masks_for(study, len(plan.sites)),
            ranks=self._learns.ranks,
            keeps_own=why_none(study) is None,
        )

    def _allow(self, round_number: int) -> Iterable[str]:
        """The policy as it stands on disk now: a person may have changed it since the study was joined."""
        policy = self._site.policy
        hours = check_hours(policy, datetime.now(UTC))
        return [str(refusal) for refusal in (*self._refusals(policy), *([] if hours is None else [hours]))]

    def _refusals(self, policy: SitePolicy) -> list[Refusal]:
        """What the policy refuses at any hour, a ledger that still allows more than it does included."""
        found = refusals(policy, self._joined.study, self._joined.bundle)
        budget = check_budget(policy, self._ledger.refresh().limits)
        return found if budget is None else [*found, budget]


def run_worker(
    site: SiteFolder,
    joined: JoinedStudy,
    load: Load,
    reply_after_s: float = REPLY_AFTER_S,
    linger_s: float = LINGER_S,
) -> None:
    """Serve one study until its last sum is applied; then write adapter and evidence. Raises SecureTriplayError."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    journal = Journal(joined.folder)
    with listening(joined.folder / SOCKET) as listener:
        journal.write("starting")
        bundle = joined.bundle
        learns = load(joined.study, site.name, bundle.adapter_seed, journal, bundle.basis_bytes)
        worker = SiteWorker(site, joined, learns, journal)
        measured = -1
        if worker.session is not None:
            measured = worker.session.state.round
        journal.write("ready")
        while not worker.finished:
            serve_one(listener, worker.answer, reply_after_s)
            if worker.session is not None and worker.session.state.round > measured:
                measured = worker.session.state.round
                learns.measure(
                    worker.session.state
                )  # after the reply, which it does not delay; the next one it may
        assert worker.session is not None
        learns.save(worker.session.state, joined.folder / ADAPTER)
        write_study_card(
            joined.study, describe(joined.study), worker.session.state.round, joined.folder / ADAPTER
        )
        write_personal(joined, site.name, worker.session, worker.vault, learns, journal)
        journal.write("saved", round=worker.session.state.round)
        listener.settimeout(linger_s)
        with suppress(TimeoutError):  # the last answer may be lost, and the server asks again
            while True:
                serve_one(listener, worker.answer, reply_after_s)
        worker.close()
        evidence = joined.folder / EVIDENCE
        if not evidence.exists():
            export(site.ledger, evidence, site.identity, purpose=f"end of study {joined.study.study}")
        journal.write("finished", peak_rss_bytes=peak_bytes())


def main() -> None:
    """Body of the process that `secure-triplay site start` keeps alive."""
    from secure_triplay.client.site_learner import load_learner

    folder, study = sys.argv[1:3]
    with ending_plainly():
        site = SiteFolder.open(Path(folder))
        run_worker(site, JoinedStudy.open(site, study), load_learner)


if __name__ == "__main__":
    main()
