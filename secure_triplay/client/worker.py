"""A simulated site's process: the key ceremony over its operator's pipe, then `serve`.

Whatever goes wrong in here, the server reads the constant `Declined`; the reason goes to the site's own journal and,
over the control pipe, to the operator at this site. Neither has a path to the wire.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from secure_triplay.client.accounts import SimulatedAccounts
from secure_triplay.client.job import Job
from secure_triplay.client.journal import Journal
from secure_triplay.client.keys import EpochKeys, Roster, make_keys, open_keys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import FOLDER
from secure_triplay.client.serve import SiteSetup, serve_site
from secure_triplay.client.site_learner import SiteLearner, load_site
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.crash import keep_trace
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import save_identity
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.lifetime import end_with_parent
from secure_triplay.memory import peak_bytes
from secure_triplay.report.card import write_personal_card
from secure_triplay.wire import SessionPlan


def work(job: Job, control: Connection) -> None:
    """Body of a site's process; ends when the study does, or with its operator's process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the operator's process, which then ends this one
    end_with_parent(os.getppid())  # the fork server, which ends with the operator's process
    os.umask(0o077)
    torch.set_num_threads(job.threads)
    try:
        _take_part(job, control, Journal(job.folder))
    except SecureTriplayError as error:
        _tell(control, error)
    except (EOFError, BrokenPipeError):
        pass  # the operator's process is gone
    except Exception as error:
        _tell(control, _told_to_operator(job, error))


def _tell(control: Connection, error: SecureTriplayError) -> None:
    """To the operator's process, unless it is gone: with it went the run's folder, perhaps, and that is no failure."""
    with suppress(ConnectionError):
        control.send(error)


def _told_to_operator(job: Job, error: Exception) -> RunError:
    """A full disk in words; anything else with a trace that outlives the run's folder, for this user alone."""
    if isinstance(error, OSError) or _disk_is_full(error):
        reason = (error.strerror if isinstance(error, OSError) else None) or "no space left on device"
        return RunError(
            f"site {job.site} cannot go on: {reason}",
            where=str(job.folder),
            fix="see whether disk and memory are left; nothing half-written was left behind",
        )
    return RunError(
        f"site {job.site} crashed: {type(error).__name__}: {error}",
        where=keep_trace(),
        fix="report it with this file; it stays at the site, and may hold paths and values of the site",
    )


def _disk_is_full(error: Exception) -> bool:
    """Libraries in other languages wrap the operating system's error in types of their own."""
    return f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error)


def _take_part(job: Job, control: Connection, journal: Journal) -> None:
    """From the first greeting to the last sum."""
    study = job.study
    journal.write("starting")
    identity, envelope_key = SigningIdentity.generate(), EnvelopeKey.generate()
    save_identity(job.folder, identity)  # so that a person can export this site's evidence again
    control.send((identity.identity.public_bytes, envelope_key.recipient.public_bytes))
    roster = Roster.of(study.sha256, job.epoch, control.recv())
    loaded = load_site(study, job.site, roster.adapter_seed, journal, test_part=job.test_part)
    control.send(loaded.codec.n_chunks)
    keys, plan = _key_ceremony(job.site, control, loaded.codec, roster, identity, envelope_key)
    journal.write("keys", key_id=keys.key_id.hex())
    accounts = SimulatedAccounts(study, job.site, job.folder / "ledger", identity, plan)
    # The storage key ends with this process: a simulated site is not restarted, and leaves no state behind.
    vault = job.folder / "state"
    setup = SiteSetup(
        study=study,
        site=job.site,
        plan=plan,
        identity=identity,
        keys=keys,
        vault=Vault(vault, new_storage_key(), study=study.sha256, epoch=job.epoch),
        accounts=accounts,
        socket_path=job.socket_path,
    )
    learns = SiteLearner(loaded, journal)
    outcome = serve_site(setup, learns, journal, lambda: control.send("ready"))
    shutil.rmtree(vault)
    learns.save(outcome.state, job.folder / "adapter")
    if outcome.personal is not None:
        learns.save(GlobalState.start(outcome.personal.adapter), job.folder / FOLDER)
        write_personal_card(study, job.site, outcome.own_rounds, job.folder / FOLDER, outcome.personal.bias)
    accounts.export(job.folder / "evidence")
    journal.write(
        "finished",
        adapter_sha256=hashlib.sha256(outcome.state.published.tobytes()).hexdigest(),
        peak_rss_bytes=peak_bytes(),
    )
    control.send("finished")


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
