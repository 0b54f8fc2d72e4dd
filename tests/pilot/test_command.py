"""The command names the option that is at fault, before anything is made."""

from __future__ import annotations

import pytest
import typer
import yaml
from click.testing import CliRunner

from secure_triplay.cli.pilot import app
from secure_triplay.errors import ConfigError


@pytest.fixture
def refused(content, tmp_path):
    """Runs the command on the small study with options that it must refuse; returns the error."""

    def run(*options: str) -> ConfigError:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        arguments = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *options]
        found = CliRunner().invoke(typer.main.get_command(app), arguments)
        assert isinstance(found.exception, ConfigError), found
        assert not (tmp_path / "out").exists()
        return found.exception

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--hours", "inf"), ("--line", "inf"), ("--memory", "nan"), ("--latency", "inf"),
        ("--round-overhead", "inf"), ("--epsilon", "1000"), ("--epsilon", "0"), ("--rank", "0"), ("--bits", "1"),
        ("--blocks", "20"), ("--blocks", "64"), ("--rounds", "0"), ("--batch", "nan"), ("--optimiser", "foo:1"),
        ("--optimiser", "fedavg:nan"), ("--quantization", "NF4"), ("--output-rank", "257"),
    ],
)  # fmt: skip
def test_an_option_that_no_pilot_can_have_is_named_where_the_error_is(refused, options):
    assert refused(*options).where == options[0]


@pytest.mark.parametrize(
    "options",
    [
        ("--private-trials", "3"),
        ("--private-rounds", "7"),
        ("--site", "north"),
        ("--approved-by", "Dr. Weber"),
    ],
)
def test_what_is_for_a_sites_own_records_is_refused_where_no_ledger_is_named(refused, options):
    error = refused(*options)
    assert error.where == "--private"
    assert error.what.startswith(f"{options[0]}: ")
