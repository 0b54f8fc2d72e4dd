"""A site's resident process: model, encoded records and keys stay in memory, and requests come over a Unix socket.

How identity, roster and keys came here is not asked: a simulation hands them over a pipe (`worker`), a real site
takes them from its folder. `load_site` is what needs no key, `serve_site` what answers the server until the last
sum is applied.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.classes import count_classes, kept_classes
from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.client.journal import Journal
from secure_triplay.client.keys import EpochKeys, load_keys, save_keys
from secure_triplay.client.learner import (
    Encoded,
    Learner,
    Score,
    counted_records,
    encode_records,
    require_units,
)
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal, personal_adapter, why_none
from secure_triplay.client.published import Published
from secure_triplay.client.round import Member
from secure_triplay.client.session import Session
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.data.records import Records
from secure_triplay.errors import CryptoError, DataError, ProtocolError, SecureTriplayError
from secure_triplay.model.ranks import ranks_of
from secure_triplay.prepare import (
    Model,
    choose_codec,
    class_count_rule,
    count_rule,
    load_data,
    load_model,
    masks_for,
)
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import SessionPlan, Witness
from secure_triplay.wireformat import MAGIC, VERSION

REAL_REPLY_AFTER_S = 0.5
"""When a real site answers `Witness`, counted from its arrival: whether a sum was accepted does not show in time."""

_WITNESS = MAGIC + bytes((VERSION, Witness.kind))

Allow = Callable[[str, int, datetime], Iterable[str]]
"""(study's SHA-256, number of participants, now) -> the reasons for which this site refuses; none to go on."""
Observe = Callable[[GlobalState], None]


def allow_everything(study: str, n_participants: int, now: datetime) -> tuple[str, ...]:
    """The policy of a simulated site, whose study is its policy."""
    return ()


@dataclass(frozen=True)
class LoadedSite:
    """What a site needs before it has a key: its records and the model. `holdout` and `public` are for measuring."""

    study: Study
    site: str
    model: Model
    codec: Codec
    train: Records
    holdout: Records
    public: Records


@dataclass(frozen=True)
class SiteSetup:
    """One real or simulated member, ready to take part; all of it came by ways of its own before.

    `keys` are those that the ceremony just brought; None takes them from the vault, where they are kept for a
    restart. `start` is the state before this epoch (None: the fresh adapter), `base` its round. `quorum` has to be
    more than half of the roster; `witnesses` peers countersign a charge before it is spent. A real site notes what it
    refuses and goes on; with `stop_on_refusal` (a simulation) the first one ends it. `reply_after_s` pads the reply to
    a sum to a fixed time after its arrival (a public constant, above what verifying takes); 0 pads nothing.
    """

    study: Study
    site: str
    plan: SessionPlan
    identity: SigningIdentity
    keys: EpochKeys | None
    vault: Vault
    accounts: LedgerAccounts
    folder: Path
    socket_path: Path
    quorum: int
    witnesses: int = 1
    threads: int = 1
    allow: Allow = allow_everything
    stop_on_refusal: bool = False
    reply_after_s: float = REAL_REPLY_AFTER_S
    start: GlobalState | None = None
    base: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a site ends a study with; `personal` is its own adapter, None where the study gives none."""

    state: GlobalState
    personal: Personal | None
    own_rounds: int


def load_site(
    study: Study,
    site: str,
    adapter_seed: bytes,
    journal: Journal,
    basis: bytes | None = None,
    *,
    test_part: tuple[int, int] = (0, 1),
) -> LoadedSite:
    """A site's records and the model with a fresh adapter; `basis` is as in `load_model`.

    `test_part` (k, n): of the public test records, this site measures k, k + n, k + 2n, ...
    Raises DataError, AssetError, ConfigError, and PrivacyError for more records than the study's delta counts on.
    """
    split = load_data(study, site)
    mine = split.sites[site]
    public = split.test.take(np.arange(test_part[0], len(split.test), test_part[1]))
    _require_usable(study, mine.train, split.test)
    model = load_model(study, split.public, adapter_seed, basis)
    journal.write(
        "loaded",
        n_params=model.adapter.n_params,
        frozen_bytes=model.backbone.frozen_bytes,
        records=len(mine.train),
        aligned_on=len(split.public) if model.backbone.projection else 0,
    )
    codec = choose_codec(study, model.adapter.n_params)
    return LoadedSite(study, site, model, codec, mine.train, mine.holdout, public)


def serve_site(
    setup: SiteSetup, loaded: LoadedSite, journal: Journal, ready: Callable[[], None] = lambda: None
) -> Outcome:
    """Take part until the last sum is applied; then the adapter of `loaded` holds what is published.

    `ready` is called once requests are answered. Raises CryptoError where there is no key; with `stop_on_refusal`
    also what was refused.
    """
    torch.set_num_threads(setup.threads)
    keys = setup.keys or load_keys(loaded.codec.parameters, setup.vault)
    if keys is None or keys.key_id != setup.plan.key_id:
        raise CryptoError(
            "this site has no key of this epoch, or it was destroyed",
            where="vault",
            fix="take part in the key ceremony of the next epoch",
        )
    if setup.keys is not None:
        save_keys(keys, setup.vault)

    def encode(what: str, records: Records) -> Encoded:
        return encode_records(
            loaded.model,
            records,
            lambda done, total: journal.write("encoding", what=what, done=done, total=total),
        )

    train = encode("training", loaded.train)
    holdout, public = encode("held-back", loaded.holdout), encode("public", loaded.public)
    noise, study = NoiseSource(), loaded.study
    ranks = ranks_of(study, loaded.model.adapter.shapes)
    learner = Learner(study, loaded.model, noise, train, None if ranks is None else ranks.trained(setup.site))

    def allow(round_number: int) -> Iterable[str]:
        return setup.allow(study.sha256, len(setup.plan.sites), datetime.now(UTC))

    me = Member(
        name=setup.site,
        plan=setup.plan,
        codec=loaded.codec,
        weights={site.name: site.weight for site in study.sites},
        quorum=setup.quorum,
        rounds=study.total_rounds,
        optimiser=study.server_optimiser,
        learner=learner,
        noise=noise,
        identity=setup.identity,
        keys=keys,
        accounts=setup.accounts,
        note=journal.write,
        witnesses=setup.witnesses,
        allow=allow,
        base=setup.base,
        published=published(study, learner, holdout, noise),
        masking=masks_for(study, len(setup.plan.sites)),
        ranks=ranks,
        keeps_own=why_none(study) is None,
    )

    def measure(state: GlobalState) -> None:
        if state.round > study.training.rounds:
            return  # the count round trained nothing
        started = time.perf_counter()
        shown, own = learner.score(state.published, public), learner.score(state.published, holdout)
        journal.write(
            "measured",
            round=state.round,
            public_correct=shown.correct,
            public_total=shown.total,
            holdout_correct=own.correct,
            holdout_total=own.total,
            seconds=time.perf_counter() - started,
        )

    counts = class_count_rule(study)
    if counts is not None:
        labels = learner.class_labels(counts.records_per_unit)
        count_classes(setup.vault, setup.accounts, counts, labels, len(study.classes), noise, journal.write)
    session = Session(me, setup.vault, setup.start or GlobalState.start(loaded.model.adapter.vector()))
    measure(session.state)
    with _listening(setup.socket_path) as listener:
        journal.write("ready")
        ready()
        answer_requests(
            listener,
            session,
            measure,
            stop_on_refusal=setup.stop_on_refusal,
            reply_after_s=setup.reply_after_s,
        )
    state, own = session.state, session.own
    classes = kept_classes(setup.vault, len(study.classes))
    personal = personal_adapter(study, own, state.published, journal.write, classes)
    if personal is not None:
        note_personal(journal, own.count, learner.score(personal.adapter, holdout, personal.bias))
    loaded.model.adapter.load_vector(state.published)
    return Outcome(state, personal, own.count)


def note_personal(journal: Journal, rounds: int, score: Score) -> None:
    """How good the personal adapter is on this site's held-back records, in its own journal."""
    journal.write("personal", rounds=rounds, holdout_correct=score.correct, holdout_total=score.total)


def published(study: Study, learner: Learner, holdout: Encoded, noise: NoiseSource) -> Published | None:
    """What the count round releases of these held-back records; None where the study publishes no accuracy."""
    rule = count_rule(study)
    if rule is None:
        return None
    counted = counted_records(holdout, rule.records_per_unit)

    def count(adapter: NDArray[np.float32]) -> tuple[int, int]:
        score = learner.score(adapter, counted)
        return score.correct, score.total

    return Published(rule, count, noise)


def answer_requests(
    listener: socket.socket,
    session: Session,
    observe: Observe,
    *,
    stop_on_refusal: bool,
    reply_after_s: float,
) -> None:
    """Answer until the last sum is applied; `observe` sees each new state after the reply has left.

    A shim that hangs up in the middle is no reason to stop: the server asks again, and gets the same upload.
    """
    while not session.finished:
        with listener.accept()[0] as connection:
            before = session.state.round
            refused = _answer_one(connection, session, reply_after_s)
            if refused is not None and stop_on_refusal:
                raise refused
        if session.state.round > before:
            observe(session.state)  # after the reply, which it does not delay; the next one it may


def _answer_one(
    connection: socket.socket, session: Session, reply_after_s: float
) -> SecureTriplayError | None:
    try:
        request = receive_frame(connection)
        arrived = time.monotonic()
        answer = session.answer(request)
        if reply_after_s and request[: len(_WITNESS)] == _WITNESS:
            time.sleep(max(0.0, arrived + reply_after_s - time.monotonic()))
        send_frame(connection, answer.reply)
    except (OSError, ProtocolError) as error:
        return error if isinstance(error, ProtocolError) else None
    return answer.refused


def _listening(path: Path) -> socket.socket:
    """A listening socket in a folder that only this user can enter; a dead worker's socket is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    os.chmod(path, 0o600)
    listener.listen()
    return listener


def _require_usable(study: Study, records: Records, test: Records) -> None:
    """Raise where there is nothing to measure with, or the study's privacy does not fit these records.

    Said to the operator here; to the server the site is merely absent.
    """
    if not len(test):
        raise DataError(
            "there are no public test images",
            where="data",
            fix="name data.test_manifest, or set data.test_fraction",
        )
    require_units(study, len(records), records.patients)
