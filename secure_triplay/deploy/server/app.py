"""The ServerApp of a real federation: the key ceremony where the epoch has no key yet, then its rounds.

Everything that it goes on from lies in the coordinator's folder and is public: the plan once every site holds the
key, and each closed round. Killed at any point and started again, it goes on from there. It imports nothing that
trains or decrypts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.deploy.server.epochstart import EpochStart, PausedError
from secure_triplay.federation.files import read_public, write_public
from secure_triplay.federation.relay import Relay
from secure_triplay.federation.serverfolder import EPOCHS, ROUNDS, ServerFolder
from secure_triplay.ledger.log import AuditLog
from secure_triplay.server.app import CLOSED_FOLDER, ServerSettings, run_rounds
from secure_triplay.server.archive import Archive
from secure_triplay.wire import SessionPlan

FOLDER_VARIABLE, KEEP_VARIABLE = "SECURE_TRIPLAY_SERVER", "SECURE_TRIPLAY_KEEP_RECEIVED"
"""Where the coordinator's folder is; and, for an audit, that every byte string that arrived is kept there."""
PLAN, RUNNING, FINISHED = "plan", "running.json", "finished"
PAUSE, PAUSED = "pause", "paused"
_CEREMONY_S = 900.0
"""A ceremony may take so long at least: a site loads its model before it offers."""
_RETRY_S = 20.0
"""What got no answer is asked again after so long; an answer of a stock SuperNode takes 3 to 10 seconds."""


def make_app() -> ServerApp:
    """The ServerApp over the coordinator's folder that the SuperLink was started for."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run_study(grid, ServerFolder.open(Path(os.environ[FOLDER_VARIABLE])))

    return app


def epoch_folder(folder: ServerFolder, epoch: int) -> Path:
    """What the server wrote in one epoch."""
    return folder.path / ROUNDS / f"epoch-{epoch}"


@dataclass(frozen=True)
class Before:
    """What an epoch goes on from: the epoch before it, its closed rounds, and who took part."""

    base: int = 0
    epoch: int = 0
    archive: Archive | None = None
    members: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: ServerFolder, epoch: int) -> Before:
        """What lies before an epoch: the last one that had a key, up to the last sum that a quorum signed.

        A sum without these signatures was opened nowhere, and its key ends with its epoch: that round is repeated.
        """
        for earlier in sorted(folder.epochs, reverse=True):
            own = epoch_folder(folder, earlier)
            if earlier >= epoch or not (own / PLAN).exists():
                continue
            plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
            archive = Archive(own / CLOSED_FOLDER, plan)
            names = frozenset(site.name for site in plan.sites)
            last = archive.last_signed
            return cls(cls.of(folder, earlier).base if last is None else last, earlier, archive, names)
        return cls()


def run_study(grid: Grid, folder: ServerFolder) -> None:
    """The newest epoch of a study, to its end or until it is to pause. Raises RunError where too few take part."""
    bundle = folder.bundle
    own = epoch_folder(folder, bundle.epoch)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    rounds = folder.path / ROUNDS
    write_public(rounds / RUNNING, json.dumps({"pid": os.getpid(), "epoch": bundle.epoch}).encode())
    pause = (rounds / PAUSE).exists
    try:
        before = Before.of(folder, bundle.epoch)
        if not (own / PLAN).exists():
            raw = read_public(folder.path / EPOCHS / f"{bundle.epoch}.bundle", "bundle", "restore the folder")
            start = EpochStart(
                grid,
                Relay(bundle, raw, before.base),
                own,
                before=before.epoch,
                archive=before.archive,
                members=before.members,
                retry_s=_RETRY_S,
                pause=pause,
            )
            try:
                plan = start.run(max(bundle.rules.deadline_s, _CEREMONY_S))
            except PausedError:
                write_public(rounds / PAUSED, b"No round of this epoch was begun.\n")
                return
            write_public(own / PLAN, plan.to_bytes())
        plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
        (rounds / PAUSED).unlink(missing_ok=True)
        settings = ServerSettings(
            plan=plan,
            rounds=folder.study.total_rounds,
            quorum=bundle.rules.quorum,
            deadline_s=bundle.rules.deadline_s,
            folder=own,
            keep_received=os.environ.get(KEEP_VARIABLE) == "1",
            base=before.base,
            log=folder.path,
            retry_s=_RETRY_S,
            masking=choose_masking(folder.study, len(plan.sites)),
        )
        AuditLog.ensure(
            folder.path, folder.identity, party="coordinator", started_by="the server, at its first start"
        )
        ended = run_rounds(grid, settings, pause)
        write_public(rounds / (FINISHED if ended else PAUSED), b"The last round was closed and signed.\n")
    finally:
        (rounds / RUNNING).unlink(missing_ok=True)
