"""`secure-triplay server`: the machine in the middle, which opens nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from secure_triplay.cli.common import quoted

app = typer.Typer(
    help="The machine in the middle: it carries and adds, and opens nothing.",
    no_args_is_help=True,
    suggest_commands=False,
)


@app.command("start", epilog="Example:  secure-triplay server start --dir coordinator --host 0.0.0.0")
def server_start(
    folder: Annotated[
        Path,
        typer.Option(
            "--dir", help="The coordinator's folder, which `study create` made.", show_default=False
        ),
    ],
    host: Annotated[
        str, typer.Option(help="127.0.0.1 for this machine alone; 0.0.0.0 for all of its addresses.")
    ] = "127.0.0.1",
) -> None:
    """Keep Flower's SuperLink running for the study; Ctrl-C stops it, and nothing is lost."""
    from secure_triplay.cli.events import say
    from secure_triplay.deploy.server.coordinator import start_server
    from secure_triplay.federation.serverfolder import ServerFolder

    out = Console(highlight=False)
    server = ServerFolder.open(folder)
    out.print(Text(f"Starting. Next, elsewhere:  secure-triplay study run --dir {quoted(folder)}"))
    start_server(server, lambda event: say(out, event), host=host)


@app.command("renew", epilog="Example:  secure-triplay server renew --dir coordinator")
def server_renew(
    folder: Annotated[
        Path,
        typer.Option(
            "--dir", help="The coordinator's folder, which `study create` made.", show_default=False
        ),
    ],
) -> None:
    """Make a new server certificate under the study's own authority; sites need to do nothing."""
    from secure_triplay.federation.serverfolder import ServerFolder

    ServerFolder.open(folder).renew_certificate()
    Console(highlight=False).print(
        Text("Renewed. Start the server again: it reads certificates when it starts.")
    )
