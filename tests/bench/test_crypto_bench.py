import json

import numpy as np
import pytest
from rich.console import Console

from secure_triplay.bench.crypto import (
    OURS,
    USUAL,
    bench_table,
    plot_crypto_bench,
    run_crypto_bench,
    update_of,
)


@pytest.fixture(scope="module")
def result():
    return run_crypto_bench(quick=True)


def test_both_ways_are_measured_in_pairs_of_the_same_size(result):
    for ours, usual in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert (ours["way"], usual["way"]) == (OURS, USUAL)
        assert (ours["n_params"], ours["n_sites"]) == (usual["n_params"], usual["n_sites"])
    assert len(result["ratios"]) == len(result["rows"]) // 2


def test_same_updates_go_both_ways_even_where_one_is_cut_short():
    assert np.array_equal(update_of(3, 20_000, 1)[:12_288], update_of(3, 12_288, 1))
    assert not np.array_equal(update_of(3, 100, 1), update_of(4, 100, 1))


def test_our_sums_are_exact_and_within_a_step(result):
    for row in result["rows"][::2]:
        assert row["integer_sums_exact"] is True
        assert row["largest_error_in_steps"] < 1


def test_fewer_bits_share_ciphertexts_and_are_beside_the_default(result):
    eight, six = (row for row in result["rows"][::2] if row["n_sites"] == 3)
    assert (eight["value_bits"], six["value_bits"]) == (8, 6)
    # of the sum of three sites a value needs two bits more: four fields of 10 bits to a real, or five of 8
    assert (eight["fields"], six["fields"]) == (4, 5)
    # 20,000 values in 4,096 reals a ciphertext: two ciphertexts, or one; and a seed of 16 bytes
    sent = [row["upload_bytes_per_param"] * row["n_params"] for row in (eight, six)]
    assert sent == pytest.approx([2 * 30_728 + 16, 30_728 + 16], abs=2)  # rates are rounded
    assert [(r["n_sites"], r["value_bits"]) for r in result["ratios"]] == [(2, 8), (3, 8), (3, 6)]


def test_usual_way_is_the_one_that_is_named(result):
    for row in result["rows"][1::2]:
        assert row["largest_error"] < 1e-6
        assert row["upload_with_context_bytes_per_param"] > row["upload_bytes_per_param"] > 57


def test_every_rate_is_there_by_clock_and_by_processor(result):
    for row in result["rows"]:
        for step in ("encrypt", "add", "decrypt"):
            assert row[f"{step}_m_params_per_s"] > 0
            assert row[f"{step}_m_params_per_cpu_s"] > 0


def test_result_says_on_what_it_was_measured_and_is_plain_json(result):
    assert json.loads(json.dumps(result)) == result
    assert result["machine"]["cpu"]
    assert set(result["versions"]) == {"python", "numpy", "tenseal"}
    assert all(row["measured_params"] <= row["n_params"] for row in result["rows"])


def test_subsample_is_reported():
    cut = run_crypto_bench(grid=((30_000, 2, 9),), usual_params=12_288)["rows"]
    assert [row["measured_params"] for row in cut] == [30_000, 12_288]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plot_is_written(result, tmp_path, suffix):
    plot_crypto_bench(result, tmp_path / f"bench.{suffix}")
    content = (tmp_path / f"bench.{suffix}").read_bytes()
    assert content.startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")


def test_table_has_a_line_for_every_row(result):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(bench_table(result))
    text = console.export_text()
    ways = [line.split()[0] for line in text.splitlines() if line.split()[:1] in (["ours,"], ["usual"])]
    assert ways == ["ours,", "usual"] * (len(result["rows"]) // 2)
