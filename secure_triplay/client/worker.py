"""One resident process a site: it holds the model, the encoded records and the keys, and answers requests.

The Flower ClientApp is a shim that brings bytes here over a Unix socket. Whatever goes wrong in here, the
answer is the constant `Declined`; the reason goes to the site's own journal and, over the control pipe, to
the operator at this site. Neither has a path to the wire.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import torch

from secure_triplay.client.accounts import SimulatedAccounts
from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.client.job import Job
from secure_triplay.client.journal import Journal
from secure_triplay.client.keys import EpochKeys, Roster, make_keys, open_keys
from secure_triplay.client.learner import Encoded, Learner, encode_records
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.round import Member, answer
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.data.records import Records
from secure_triplay.errors import DataError, PrivacyError, RunError, SecureTriplayError
from secure_triplay.prepare import choose_codec, load_data, load_model
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Begin, Declined, SessionPlan, SumMessage
from secure_triplay.wireformat import read


def work(job: Job, control: Connection) -> None:
    """Body of a site's process; ends when the study does, or with its operator's process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the operator's process, which then ends this one
    os.umask(0o077)
    torch.set_num_threads(job.threads)
    try:
        journal = Journal(job.folder)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(job.socket_path))
            listener.listen()
            _take_part(job, control, journal, listener)
    except SecureTriplayError as error:
        control.send(error)
    except (EOFError, BrokenPipeError):
        pass  # the operator's process is gone
    except Exception as error:
        control.send(_told_to_operator(job, error))


def _told_to_operator(job: Job, error: Exception) -> RunError:
    """A full disk in words; anything else with a trace that outlives the run's folder, for this user alone."""
    if isinstance(error, OSError) or _disk_is_full(error):
        reason = (error.strerror if isinstance(error, OSError) else None) or "no space left on device"
        return RunError(
            f"site {job.site} cannot go on: {reason}",
            where=str(job.folder),
            fix="see whether disk and memory are left; nothing half-written was left behind",
        )
    descriptor, trace = tempfile.mkstemp(prefix="secure-triplay-crash-", suffix=".txt")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(traceback.format_exc())
    return RunError(
        f"site {job.site} crashed: {type(error).__name__}: {error}",
        where=trace,
        fix="report it with this file; it stays at the site, and may hold paths and values of the site",
    )


def _disk_is_full(error: Exception) -> bool:
    """Libraries in other languages wrap the operating system's error in types of their own."""
    return f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error)


def _take_part(job: Job, control: Connection, journal: Journal, listener: socket.socket) -> None:
    """From the first greeting to the last sum."""
    study = job.study
    journal.write("starting")
    split = load_data(study, job.site)
    mine, test = (
        split.sites[job.site],
        split.test.take(np.arange(job.test_part[0], len(split.test), job.test_part[1])),
    )
    _require_usable(study, mine.train, split.test)
    identity, envelope_key = SigningIdentity.generate(), EnvelopeKey.generate()
    control.send((identity.identity.public_bytes, envelope_key.recipient.public_bytes))
    roster = Roster.of(study.sha256, job.epoch, control.recv())

    model = load_model(study, split.public, roster.adapter_seed)
    codec = choose_codec(study, model.adapter.n_params)
    journal.write(
        "loaded",
        n_params=model.adapter.n_params,
        frozen_bytes=model.backbone.frozen_bytes,
        records=len(mine.train),
        aligned_on=len(split.public) if model.backbone.projection else 0,
    )
    control.send(codec.n_chunks)
    keys, plan = _key_ceremony(job.site, control, codec, roster, identity, envelope_key)
    journal.write("keys", key_id=keys.key_id.hex())
    accounts = SimulatedAccounts(study, job.site, job.folder / "ledger", identity)
    accounts.joined(plan)

    def encode(what: str, records: Records) -> Encoded:
        def tell(done: int, total: int) -> None:
            journal.write("encoding", what=what, done=done, total=total)

        return encode_records(model, records, tell)

    train, holdout, public = (
        encode("training", mine.train),
        encode("held-back", mine.holdout),
        encode("public", test),
    )
    noise = NoiseSource()
    learner = Learner(study, model, noise, train)
    me = Member(
        name=job.site,
        plan=plan,
        codec=codec,
        weights={site.name: site.weight for site in study.sites},
        quorum=len(study.sites),
        rounds=study.training.rounds,
        optimiser=study.server_optimiser,
        learner=learner,
        noise=noise,
        identity=identity,
        keys=keys,
        accounts=accounts,
        note=journal.write,
    )

    def measure(state: GlobalState) -> None:
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

    state = GlobalState.start(model.adapter.vector())
    measure(state)
    journal.write("ready")
    control.send("ready")
    state = _serve(listener, me, state, measure, study.training.rounds)
    model.adapter.load_vector(state.published)
    model.adapter.save(job.folder / "adapter")
    accounts.export(job.folder / "evidence")
    journal.write(
        "finished",
        adapter_sha256=hashlib.sha256(state.published.tobytes()).hexdigest(),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    control.send("finished")


def _serve(
    listener: socket.socket,
    me: Member,
    state: GlobalState,
    measure: Callable[[GlobalState], None],
    rounds: int,
) -> GlobalState:
    """Answer requests until the last sum is applied; the same request again gets the same bytes again."""
    asked, answered = b"", b""
    while state.round < rounds:
        with listener.accept()[0] as connection:
            request = receive_frame(connection)
            if request == asked:
                send_frame(connection, answered)
                continue
            before = state.round
            try:
                message = read(request, Begin, SumMessage, max_bytes=me.plan.max_sum_bytes)
                assert isinstance(message, Begin | SumMessage)
                state, reply = answer(me, state, message)
            except SecureTriplayError as error:
                me.note("declined", what=error.what, where=error.where)
                send_frame(connection, Declined().to_bytes())
                raise
            asked, answered = request, reply.to_bytes()
            send_frame(connection, answered)
        if state.round > before:
            measure(
                state
            )  # after the reply has left, so that its time says nothing of this site's own records
    return state


def _require_usable(study: Study, records: Records, test: Records) -> None:
    """Raise where there is nothing to measure with, or more records than the study's delta was chosen for.

    Said to the operator here; to the server the site is merely absent.
    """
    if not len(test):
        raise DataError(
            "there are no public test images",
            where="data",
            fix="name data.test_manifest, or set data.test_fraction",
        )
    if study.dp and study.dp.unit == "record" and len(records) > study.dp.max_units_per_site:
        raise PrivacyError(
            f"this site has {len(records):,} records and the study's delta counts on "
            f"{study.dp.max_units_per_site:,} at most",
            where="privacy.max_units_per_site",
            fix="train on fewer records, or have the study raise the bound and lower delta",
        )


def _key_ceremony(
    site: str,
    control: Connection,
    codec: Codec,
    roster: Roster,
    identity: SigningIdentity,
    envelope_key: EnvelopeKey,
) -> tuple[EpochKeys, SessionPlan]:
    """Make the keys if this site was asked to, then open this site's envelope like everybody else."""
    maker = control.recv()
    if maker == site:
        control.send(make_keys(codec.parameters, roster, maker, identity))
    name, envelope = control.recv()
    keys = open_keys(envelope, codec.parameters, roster, maker=maker, site=site, name=name, key=envelope_key)
    return keys, roster.plan(name, codec.n_chunks)
