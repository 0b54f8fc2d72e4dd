"""A simulated site's rounds: from the epoch's keys to the last sum, over a Unix socket.

A real site's are in `deploy.site.worker`, which goes on after a restart and from one key epoch to the next.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.answering import listening, serve_one
from secure_triplay.client.classes import count_own_classes, kept_classes, train_with_own_bias
from secure_triplay.client.journal import Journal
from secure_triplay.client.keys import EpochKeys, save_keys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal, personal_adapter, why_none
from secure_triplay.client.round import Member
from secure_triplay.client.session import Session
from secure_triplay.client.site_learner import SiteLearner
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.constants import masks_for
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import SecureTriplayError
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import SessionPlan

Observe = Callable[[GlobalState], None]


@dataclass(frozen=True)
class SiteSetup:
    """One simulated member with the keys that the ceremony brought; every site of the study takes part in each sum."""

    study: Study
    site: str
    plan: SessionPlan
    identity: SigningIdentity
    keys: EpochKeys
    vault: Vault
    accounts: LedgerAccounts
    socket_path: Path


@dataclass(frozen=True)
class Outcome:
    """What a site ends a study with; `personal` is its own adapter, None where the study gives none."""

    state: GlobalState
    personal: Personal | None
    own_rounds: int


def serve_site(setup: SiteSetup, learns: SiteLearner, journal: Journal, ready: Callable[[], None]) -> Outcome:
    """Take part until the last sum is applied; `ready` is called once requests are answered.

    Raises what this site refused: in a simulation the first refusal ends it.
    """
    study = setup.study
    save_keys(setup.keys, setup.vault)
    me = Member(
        name=setup.site,
        plan=setup.plan,
        codec=learns.codec,
        weights={site.name: site.weight for site in study.sites},
        quorum=len(study.sites),
        rounds=study.total_rounds,
        optimiser=study.server_optimiser,
        learner=learns.trainer,
        noise=NoiseSource(),
        identity=setup.identity,
        keys=setup.keys,
        accounts=setup.accounts,
        note=journal.write,
        published=learns.published,
        masking=masks_for(study),
        ranks=learns.ranks,
        keeps_own=why_none(study) is None,
    )
    count_own_classes(study, setup.vault, setup.accounts, learns, journal)
    train_with_own_bias(study, setup.vault, learns)
    session = Session(me, setup.vault, GlobalState.start(learns.start()))
    learns.measure(session.state)
    with listening(setup.socket_path) as listener:
        journal.write("ready")
        ready()
        answer_requests(listener, session, learns.measure)
    counts = kept_classes(setup.vault, len(study.classes))
    personal = personal_adapter(study, session.own, session.state.published, journal.write, counts)
    if personal is not None:
        learns.measure_own(personal, session.own.count)
    return Outcome(session.state, personal, session.own.count)


def answer_requests(listener: socket.socket, session: Session, observe: Observe) -> None:
    """Answer until the last sum is applied; `observe` sees each new state after the reply has left.

    Raises what the session refused, once the server was told no more than `Declined`.
    """
    refused: list[SecureTriplayError] = []

    def answer(request: bytes) -> bytes:
        answered = session.answer(request)
        refused.extend([answered.refused] if answered.refused else [])
        return answered.reply

    while not session.finished:
        before = session.state.round
        serve_one(listener, answer, reply_after_s=0.0)
        if refused:
            raise refused[0]
        if session.state.round > before:
            observe(session.state)  # after the reply, which it does not delay; the next one it may
