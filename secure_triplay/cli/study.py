"""`secure-triplay study`: the coordinator's side of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile, print_json, quoted

app = typer.Typer(
    help="The coordinator's side: make a study, run it, change who takes part.",
    no_args_is_help=True,
    suggest_commands=False,
)

StudyDir = Annotated[
    Path,
    typer.Option("--dir", help="The coordinator's folder, which `study create` made.", show_default=False),
]


@app.command(
    "create",
    epilog="Example:  secure-triplay study create STUDY.yaml --sites *.enrol "
    "--server fl.example.org:8443 --out coordinator",
)
def study_create(
    study_file: StudyFile,
    sites: Annotated[
        list[Path], typer.Option("--sites", help="The sites' enrolment files.", show_default=False)
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    more_sites: Annotated[list[Path] | None, typer.Argument(metavar="[SITE.enrol]...", hidden=True)] = None,
    server: Annotated[
        str, typer.Option("--server", help="HOST:PORT at which sites reach the server.")
    ] = "127.0.0.1:8443",
    quorum: Annotated[
        int | None,
        typer.Option(
            help=r"Sites without which no sum is opened. \[default: the masks' threshold, or more than half]"
        ),
    ] = None,
    started_by: Annotated[
        str, typer.Option(help="The person who starts the study; stands in the coordinator's audit log.")
    ] = "coordinator",
    deadline_s: Annotated[
        float, typer.Option("--deadline", help="Seconds that an exchange with the sites may take.")
    ] = 3600.0,
) -> None:
    """Make a study's certificate authority, roster and bundle from the sites' enrolment files.

    For `adapter.basis: public` this computes A, and needs the study's backbone and public images here.
    """
    from secure_triplay.config import load_study
    from secure_triplay.federation.serverfolder import ServerFolder, read_enrolments
    from secure_triplay.federation.studybundle import Rules, least_quorum

    sites += more_sites or []  # what a shell makes of --sites *.enrol
    members = read_enrolments(sites)  # a file that is none is named before anything is counted
    least = least_quorum(load_study(study_file), len(members)) if quorum is None else quorum
    rules = Rules.stated(least, deadline_s)
    folder = ServerFolder.create(
        out_folder, study_file, sites, server=server, rules=rules, started_by=started_by
    )
    _print_roster(Console(highlight=False, soft_wrap=True), folder, out_folder)


@app.command("confirm", epilog="Example:  secure-triplay study confirm st-mary.joined --dir coordinator")
def study_confirm(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="JOINED...", help="Sites' .joined files.", show_default=False),
    ],
    folder: StudyDir,
) -> None:
    """Take in the sites' confirmations; nothing runs at a site that did not confirm."""
    from secure_triplay.federation.serverfolder import ServerFolder

    server = ServerFolder.open(folder)
    for file in files:
        server.take_confirmation(file)
    missing = [name for name in server.bundle.members if name not in server.approvals()]
    out = Console(highlight=False, soft_wrap=True)
    if missing:
        out.print(Text(f"Confirmed: {len(server.approvals())} sites. Still to come: {', '.join(missing)}."))
    else:
        out.print(
            Text(
                f"All {len(server.bundle.members)} sites confirmed. "
                f"Next:  secure-triplay server start --dir {quoted(folder)}"
            )
        )


def _print_roster(out: Console, folder: object, where: Path) -> None:
    from secure_triplay.federation.serverfolder import ServerFolder

    assert isinstance(folder, ServerFolder)
    bundle = folder.bundle
    out.print(Text(f"{bundle.study['study']}, key epoch {bundle.epoch}, quorum {bundle.rules.quorum}:"))
    for name, member in bundle.members.items():
        out.print(Text(f"  {name:<20} {member.fingerprint}"))
    if bundle.basis_bytes is not None:
        out.print(
            Text(
                f"The bundle carries what is computed here from public images: {len(bundle.basis_bytes):,} bytes. Each "
                "site needs the same images to take part."
            )
        )
    out.print(
        Text.assemble(
            "Have each site read you its fingerprint over the phone; it must be the one above.\n"
            "Hand this file to every site:  ",
            (str(folder.public_bundle), "bold"),
            f"\nEach runs:  secure-triplay site join {folder.public_bundle.name} --site ITS-FOLDER\n"
            f"Next, with what they send back:  secure-triplay study confirm *.joined --dir {quoted(where)}",
        )
    )


@app.command("run", epilog="Example:  secure-triplay study run --dir coordinator")
def study_run(folder: StudyDir) -> None:
    """Run the rounds to the end, or go on where they stopped. Ctrl-C leaves them running."""
    from secure_triplay.cli.events import say
    from secure_triplay.deploy.server.coordinator import run_study
    from secure_triplay.federation.serverfolder import ServerFolder

    out = Console(highlight=False)
    run_study(ServerFolder.open(folder), lambda event: say(out, event))
    out.print(Text("The study has ended; every site that was there has the adapter."))


@app.command("status", epilog="Example:  secure-triplay study status --dir coordinator")
def study_status(folder: StudyDir, as_json: AsJson = False) -> None:
    """Say where the study stands."""
    from secure_triplay.deploy.server.coordinator import status
    from secure_triplay.federation.serverfolder import ServerFolder

    found = status(ServerFolder.open(folder))
    if as_json:
        print_json(found)
        return
    state = "finished" if found["finished"] else "running" if found["running"] else "not running"
    out = Console(highlight=False)
    out.print(
        Text(
            f"{found['study']}: {state}; round {found['last_closed_round']} of {found['rounds']} is closed, "
            f"key epoch {found['epoch']}.\nConfirmed: {', '.join(found['confirmed']) or 'nobody'} "
            f"(of {', '.join(found['sites'])})."
            + (f"\nLast sum over: {', '.join(found['last_survivors'])}." if found["last_survivors"] else "")
            + (
                "\nRefused: " + ", ".join(f"{n} {why}" for why, n in found["refused"].items()) + "."
                if found["refused"]
                else ""
            )
            + (f"\nWaiting: {found['waiting']}." if found["waiting"] else "")
        )
    )


@app.command("export", epilog="Example:  secure-triplay study export --dir coordinator --out evidence")
def study_export(
    folder: StudyDir,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; it must not exist.", show_default=False)],
    purpose: Annotated[str, typer.Option(help="For whom or what; it is noted in the log.")] = "audit",
) -> None:
    """Write the coordinator's signed log of rounds and key epochs, to be held against the sites' evidence."""
    from secure_triplay.federation.serverfolder import ServerFolder
    from secure_triplay.ledger.logbundle import export_log

    server = ServerFolder.open(folder)
    export_log(server.path, out, server.identity, purpose=purpose)
    Console(highlight=False, soft_wrap=True).print(
        Text(
            f"Written to {out}. Signed by {server.identity.identity.fingerprint}\n"
            f"Next, with the sites' evidence:  secure-triplay audit verify {quoted(out)} SITE-EVIDENCE..."
        )
    )


@app.command("stop", epilog="Example:  secure-triplay study stop --dir coordinator")
def study_stop(
    folder: StudyDir,
    now: Annotated[bool, typer.Option("--now", help="Not after this round, but at once.")] = False,
) -> None:
    """Stop after this round. Closed rounds stay, and `study run` goes on from them."""
    from secure_triplay.deploy.server.coordinator import stop_study
    from secure_triplay.federation.serverfolder import ServerFolder

    stop_study(ServerFolder.open(folder), now=now)
    Console(highlight=False).print(
        Text("Stopped. `secure-triplay study run` goes on from the last closed round.")
    )


@app.command("add", epilog="Example:  secure-triplay study add charite.enrol --dir coordinator")
def study_add(
    enrolments: Annotated[list[Path], typer.Argument(metavar="SITE.enrol...", show_default=False)],
    folder: StudyDir,
) -> None:
    """Take in sites that the study names: a new key epoch, which every site confirms, since somebody is new."""
    from secure_triplay.deploy.server.coordinator import change_roster
    from secure_triplay.federation.serverfolder import ServerFolder

    server = ServerFolder.open(folder)
    change_roster(server, add=enrolments)
    _print_roster(Console(highlight=False, soft_wrap=True), server, folder)


@app.command("remove", epilog="Example:  secure-triplay study remove st-mary --dir coordinator")
def study_remove(sites: Annotated[list[str], typer.Argument(metavar="SITE...")], folder: StudyDir) -> None:
    """Go on without some sites: a new key epoch, of which they cannot open anything.

    Where the masks over fewer sites protect less than before, people at every site confirm it first.
    """
    from secure_triplay.constants import protects_less
    from secure_triplay.deploy.server.coordinator import change_roster
    from secure_triplay.federation.serverfolder import ServerFolder

    server = ServerFolder.open(folder)
    before = len(server.bundle.members)
    bundle = change_roster(server, remove=sites)
    less = protects_less(server.study, before, len(bundle.members))
    if less is None:
        _print_epoch(bundle.epoch, list(bundle.members), folder)
        return
    out = Console(highlight=False, soft_wrap=True)
    out.print(Text(f"Of fewer sites, {less}: people at every site have to decide whether that is enough.\n"))
    _print_roster(out, server, folder)


@app.command("rotate", epilog="Example:  secure-triplay study rotate --dir coordinator")
def study_rotate(folder: StudyDir) -> None:
    """Give the same sites a new key; what the old one opened stays closed to whoever steals it later."""
    from secure_triplay.deploy.server.coordinator import change_roster
    from secure_triplay.federation.serverfolder import ServerFolder

    bundle = change_roster(ServerFolder.open(folder))
    _print_epoch(bundle.epoch, list(bundle.members), folder)


def _print_epoch(epoch: int, members: list[str], folder: Path) -> None:
    Console(highlight=False, soft_wrap=True).print(
        Text(
            f"Key epoch {epoch}: {', '.join(members)}. Nobody is new, so the sites go on by themselves.\n"
            f"Next:  secure-triplay study run --dir {quoted(folder)}"
        )
    )
