"""The load bench measures real rounds whose sums are exact, and the server's memory does not follow the sites."""

from __future__ import annotations

import pytest
from rich.console import Console

from secure_triplay.bench.load import load_table, plot_load_bench, run_load_bench


@pytest.fixture(scope="module")
def result():
    return run_load_bench(sizes=(40, 100))


def test_the_servers_memory_is_flat_in_the_number_of_sites(result):
    few, many = result["rows"]
    grown = many["server_peak_bytes"] - few["server_peak_bytes"]
    assert grown < 10 * many["upload_bytes"]  # not the 60 uploads more


def test_a_sum_grows_by_headers_only_and_an_upload_not_at_all(result):
    few, many = result["rows"]
    assert (few["n_chunks"], few["upload_bytes"]) == (many["n_chunks"], many["upload_bytes"])
    assert many["sum_bytes"] - few["sum_bytes"] < 60 * 512


def test_what_was_not_summed_exactly_is_an_error(monkeypatch):
    def cheat(self, *args, **kwargs):
        return original(self, *args, **kwargs) + 1

    from secure_triplay.crypto.codec import Codec
    from secure_triplay.errors import RunError

    original = Codec.sum_from_slots
    monkeypatch.setattr(Codec, "sum_from_slots", cheat)
    with pytest.raises(RunError, match="not the sum"):
        run_load_bench(sizes=(2,))


def test_the_table_fits_a_terminal_and_the_plot_is_written(result, tmp_path):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(load_table(result))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    plot_load_bench(result, tmp_path / "bench.svg")
    assert (tmp_path / "bench.svg").read_text().startswith("<?xml")
