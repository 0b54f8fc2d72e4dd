"""The `secure-triplay` command: parses and prints, and leaves everything else to the library.

One module a group of commands, each with an `app` of its own.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperArgument

from secure_triplay import __version__
from secure_triplay.cli import (
    attack,
    audit,
    bench,
    budget,
    config,
    doctor,
    experiment,
    pilot,
    policy,
    server,
    simulate,
    site,
    study,
)
from secure_triplay.cli.common import unusable_file
from secure_triplay.crash import keep_trace
from secure_triplay.errors import CrashError, SecureTriplayError

app = typer.Typer(
    name="secure-triplay",
    help="Hospitals fine-tune one shared CLIP together, under differential privacy and encryption.",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests as well, and every group has to say it
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  secure-triplay simulate configs/demo.yaml   |   Exit code 64: the command line is wrong. "
    "70: a crash, of which a report was written. 130: it was stopped. Others belong to what failed or was found.",
)
app.add_typer(simulate.app)  # without a name: its commands stand at the top
app.add_typer(attack.app)
app.add_typer(experiment.app)
app.add_typer(pilot.app)
app.add_typer(config.app, name="config")
app.add_typer(policy.app, name="policy")
app.add_typer(budget.app, name="budget")
app.add_typer(audit.app, name="audit")
app.add_typer(bench.app, name="bench")
app.add_typer(site.app, name="site")
app.add_typer(study.app, name="study")
app.add_typer(server.app, name="server")
app.add_typer(doctor.app)

STOPPED, CLOSED = 130, 141
USAGE = 64  # EX_USAGE of sysexits.h; click's own 2 is that of a finding here
_STOPPED = "[bold]Stopped.[/] Nothing half-written was left; what was charged to a budget stays charged."


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"secure-triplay {__version__}\n")
        raise typer.Exit


def _keep_help_of_arguments() -> None:
    """click 8.5 gives an argument a help of its own, and typer 0.20 does not hand over the one that stands here."""
    make = TyperArgument.__init__

    def with_help(self: TyperArgument, **given: Any) -> None:
        make(self, **given)
        self.help = given.get("help")

    TyperArgument.__init__ = with_help  # type: ignore[method-assign]


_keep_help_of_arguments()


def main() -> None:
    """Entry point: errors become three plain parts and an exit code, never a traceback."""
    _require_streams()
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is being stopped
    try:
        code = app(standalone_mode=False) or 0
        if code == STOPPED:  # what typer makes of a KeyboardInterrupt
            console.print(_STOPPED)
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except SecureTriplayError as error:
        _fail(console, error)
    except (KeyboardInterrupt, click.Abort):
        console.print(_STOPPED)
        sys.exit(STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED)
    except SystemExit as stop:  # what click and rich make of a BrokenPipeError, with the 1 of a finding
        sys.exit(CLOSED if isinstance(stop.__context__, BrokenPipeError) else stop.code)
    except OSError as error:  # a disk that is full, a folder that may not be written
        _fail(console, unusable_file(error))
    except Exception as error:  # what nobody foresaw; Python's own 1 is that of a finding here
        crash = CrashError(
            f"the program crashed: {type(error).__name__}: {error}",
            where=keep_trace(),
            fix="report it with this file; it may hold paths and values of yours",
        )
        _fail(console, crash)


def _fail(console: Console, error: SecureTriplayError) -> NoReturn:
    console.print(Text.assemble(("Error:", "bold red"), " ", error.what), soft_wrap=True)
    if error.where:
        console.print(Text.assemble(("Where:", "bold"), " ", error.where), soft_wrap=True)
    if error.fix:
        console.print(Text.assemble(("What to do:", "bold"), " ", error.fix), soft_wrap=True)
    sys.exit(error.exit_code)


def _require_streams() -> None:
    """Streams that take whatever is written to them.

    One that the caller closed becomes the null device: else the next file that is opened, such as a ledger, has its
    number. Letters that a terminal's encoding lacks are written as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
