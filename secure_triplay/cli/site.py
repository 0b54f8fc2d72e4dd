"""`secure-triplay site`: a hospital's own side of a federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secure_triplay.cli.common import quoted

app = typer.Typer(
    help="A hospital's own side: keys, policy, joining, taking part.",
    no_args_is_help=True,
    suggest_commands=False,
)

SiteDir = Annotated[
    Path, typer.Option("--site", help="The site's folder, which `site init` made.", show_default=False)
]
StudyName = Annotated[str | None, typer.Option("--study", help=r"Which study. \[default: the only one]")]


@app.command("init", epilog="Example:  secure-triplay site init --name st-mary --approved-by 'Dr. Weber'")
def site_init(
    name: Annotated[
        str, typer.Option("--name", help="The site's name in studies: a-z, 0-9 and -.", show_default=False)
    ],
    folder: Annotated[Path | None, typer.Option("--dir", help=r"A new folder. \[default: ./NAME]")] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help=r"The site's policy. \[default: a copy of the strict one]")
    ] = None,
    approved_by: Annotated[
        str | None,
        typer.Option("--approved-by", help="The person who starts the privacy ledger under that policy."),
    ] = None,
) -> None:
    """Make the site's keys, here, and one public file to enrol with."""
    from secure_triplay.federation.sitefolder import SiteFolder
    from secure_triplay.ledger.persons import require_person
    from secure_triplay.ledger.start import start

    if approved_by is not None:
        require_person(approved_by, "--approved-by")
    where = Path(name) if folder is None else folder
    site = SiteFolder.init(where, name, policy, with_ledger=approved_by is not None)
    out = Console(highlight=False, soft_wrap=True)
    out.print(
        Text.assemble(
            f"Made {where}: keys of {name}, which are never sent, and policy.yaml, which only people here write.\n"
            "Key files have no passphrase, so that the site starts by itself; full-disk encryption protects them.\n"
            f"Send to the coordinator:  {site.enrolment_file}  (public)\n"
            "Its fingerprint, to read out over the phone:\n  ",
            (site.enrolment.fingerprint, "bold"),
            f"\nEvidence of its budget is signed as, for auditors:\n  {site.identity.identity.fingerprint}",
        )
    )
    if approved_by is None:
        out.print(
            Text(
                "Next: read policy.yaml, then start the privacy ledger under it, once:\n"
                f"  secure-triplay budget start --site {quoted(where)} "
                f"--policy {quoted(site.policy_file)} --approved-by NAME"
            )
        )
        return
    limits = start(where, site.policy_file, name=name, approved_by=approved_by)
    out.print(
        Text(
            f"Ledger started by {approved_by}: epsilon {limits.epsilon_per_study:g} a study and "
            f"{limits.epsilon_per_year:g} a year, per {limits.unit}.\n"
            f"Next, when the coordinator's bundle comes:  secure-triplay site join BUNDLE --site {quoted(where)}"
        )
    )


@app.command("join", epilog="Example:  secure-triplay site join demo.bundle --site st-mary")
def site_join(
    bundle_file: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="The coordinator's public bundle.", show_default=False),
    ],
    site_dir: SiteDir,
    confirm_roster_code: Annotated[
        str | None,
        typer.Option(help=r"The code, once it was compared with the other sites. \[default: ask]"),
    ] = None,
    approved_by: Annotated[
        str | None, typer.Option(help=r"The person who decides. \[default: ask; nothing is agreed without]")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="This site's manifest.csv, where the study is on manifests.")
    ] = None,
    public_manifest: Annotated[Path | None, typer.Option(help="Manifest of the public images.")] = None,
    test_manifest: Annotated[Path | None, typer.Option(help="Manifest of the public test images.")] = None,
    backbone: Annotated[Path | None, typer.Option(help="The weight file, where the study names one.")] = None,
) -> None:
    """Show what a study asks of this site, hold it against the site's policy, and confirm it.

    Exit code 0: it was confirmed. 2: nothing was agreed yet, for want of a code or a name. 6: the policy refuses.
    64: the command line is wrong.
    """
    from secure_triplay.federation import join
    from secure_triplay.federation.sitefolder import SiteFolder
    from secure_triplay.federation.studybundle import SitePaths

    site = SiteFolder.open(site_dir)
    absolute = {
        key: str(path.absolute())
        for key, path in {
            "manifest": manifest,
            "public_manifest": public_manifest,
            "test_manifest": test_manifest,
            "backbone": backbone,
        }.items()
        if path is not None
    }
    asked = join.look(site, bundle_file, SitePaths(**absolute))
    out = Console(highlight=False)
    _show(out, site.name, asked)
    if asked.refusals:
        for refusal in asked.refusals:
            out.print(Text(f"REFUSED  {refusal}"))
        out.print(
            Text(
                f"{site.name} does not take part: its policy ({site.policy_file}) refuses. Nothing was agreed."
            )
        )
        raise typer.Exit(6)
    out.print(Text("This site's policy allows it."))
    changed = join.changed_limits(site, asked.policy.rules)
    if changed is not None:
        kept, edited = (
            f"epsilon {each.epsilon_per_study:g} a study and {each.epsilon_per_year:g} a year"
            for each in changed
        )
        out.print(
            Text(
                f"It was edited: who agrees puts {edited} in force in this site's ledger. Until now: {kept}."
            )
        )
    out.print(
        Text.assemble(
            "\nRoster code:  ",
            (asked.bundle.code, "bold"),
            "\nRead it to people at the other sites whom you know, over the phone. The coordinator cannot vouch for "
            "it: a sham site on the roster would get the key. All sites must have the same code.\n",
        )
    )
    if confirm_roster_code is None or approved_by is None:
        if not sys.stdin.isatty():
            out.print(
                Text(
                    "Nothing was agreed yet. Next, once it was compared:\n  secure-triplay site join "
                    f"{quoted(bundle_file)} --site {quoted(site_dir)} --confirm-roster-code CODE --approved-by NAME"
                ),
                soft_wrap=True,
            )
            raise typer.Exit(2)
        confirm_roster_code = confirm_roster_code or typer.prompt("The code, as the other sites read it")
        approved_by = approved_by or typer.prompt("Your name, which stands in the ledger")
    path = join.confirm(site, asked, code=str(confirm_roster_code), approved_by=str(approved_by))
    out.print(
        Text(
            f"{site.name} takes part in {asked.study.study}; {approved_by} stands in the ledger for it.\n"
            f"Send to the coordinator:  {path}  (public)\nNext:  secure-triplay site start --site {quoted(site_dir)}"
        ),
        soft_wrap=True,
    )


def _show(out: Console, name: str, asked: object) -> None:
    """The page on which a person decides."""
    from secure_triplay.config import FashionMnist
    from secure_triplay.describe import describe, read_this
    from secure_triplay.federation.join import Asked

    assert isinstance(asked, Asked)
    bundle, study = asked.bundle, asked.study
    data = study.data
    columns = (
        "a public data set; no data of this site"
        if isinstance(data, FashionMnist)
        else "this site's manifest.csv: path and label, "
        + ("patient_id" if study.dp and study.dp.unit == "patient" else "patient_id where it has one")
        + (", domain" if data.partition.kind == "domain" else "")
    )
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for topic, sentence in describe(study):
        if topic in ("Data", "Together", "Not protected", "Study"):
            continue
        table.add_row(topic, Text(sentence))
        if topic == "Model":
            table.add_row("Columns", Text(f"It reads {columns}."))
    members = [f"{site} ({entry.fingerprint})" for site, entry in bundle.members.items()]
    table.add_row("Sites", Text("\n".join(members)))
    table.add_row(
        "Rounds",
        Text(
            f"{study.training.rounds} rounds; each sum is over at least {bundle.rules.quorum} of "
            f"{len(bundle.members)} sites, and as many must sign it before anyone decrypts it."
        ),
    )
    table.add_row("Server at", Text(f"{bundle.server}; TLS by the study's own authority"))
    table.add_row("Code", Text(f"App {bundle.app_sha256}, made of the package that is installed here."))
    if bundle.basis_bytes is not None:
        few = " and output directions" if study.adapter.output_rank is not None else ""
        table.add_row(
            "Basis",
            Text(
                f"The bundle brings A{few}, {len(bundle.basis_bytes):,} bytes, which the coordinator computed from "
                "public images. This site holds it against its own copy of them before it trains, and does not start "
                "where it does not fit."
            ),
        )
    table.add_row("Read this", Text(read_this(study, len(bundle.members)), style="bold"))
    out.print(Text(f"What {study.study} asks of {name} (key epoch {bundle.epoch})\n", style="bold"))
    out.print(table)
    out.print()


@app.command("start", epilog="Example:  secure-triplay site start --site st-mary")
def site_start(site_dir: SiteDir, study: StudyName = None) -> None:
    """Take part: keep this site's worker and SuperNode running until the study ends. Ctrl-C stops them."""
    from secure_triplay.cli.events import say
    from secure_triplay.deploy.site.start import start_site
    from secure_triplay.federation.join import JoinedStudy
    from secure_triplay.federation.sitefolder import SiteFolder

    site = SiteFolder.open(site_dir)
    joined = JoinedStudy.open(site, study)
    out = Console(highlight=False)
    out.print(Text(f"{site.name} takes part in {joined.study.study}; server at {joined.bundle.server}."))
    start_site(site, joined, lambda event: say(out, event))
    out.print(
        Text(
            f"The study has ended. In {joined.folder}: adapter/ (PEFT), evidence/ (what was spent), personal/ (this "
            "site's own adapter, where the study has them), journal.jsonl (exact figures, for this site alone).\n"
            "What people here may hand out is in the policy under may_export; no program keeps them from more.\n"
            "The last epoch's key stays in state/ until somebody deletes that folder; the ledger has to be kept."
        )
    )
