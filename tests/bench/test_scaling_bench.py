"""The scaling bench times the step that runs, and its memory figures are those of the tower it loaded."""

from __future__ import annotations

import pytest

from secure_triplay.bench.scaling import plot_scaling, run_scaling_bench, scaling_table
from secure_triplay.errors import AssetError


@pytest.fixture(scope="module")
def result():
    try:
        return run_scaling_bench(quick=True)
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")


def test_a_real_size_tower_is_measured_in_both_formats_and_said_to_be_random(result, tmp_path):
    full, small = result["real_size"]
    assert (full["quantization"], small["quantization"]) == ("none", "nf4")
    assert full["weights"] == small["weights"] == "random"
    # ViT-B: 12 blocks of 12 x 768^2 weights, of which the last adapts q, k, v, out and both MLP layers at rank 8
    assert full["image_bytes"] > 4 * 12 * 12 * 768**2
    assert full["n_params"] == 8 * (4 * 768 + 3072 + 768)
    assert result["nf4_of_fp32_image_bytes"] == pytest.approx(
        small["image_bytes"] / full["image_bytes"], abs=1e-4
    )
    assert result["nf4_of_fp32_image_bytes"] <= 0.35
    for row in (*result["steps"], *result["real_size"]):
        assert row["images_per_cpu_s"] == pytest.approx(row["drawn"] / row["cpu_s_a_step"], rel=0.02)
        assert row["frozen_blocks_images_per_cpu_s"] > 0
    assert scaling_table(result).row_count == 3
    plot_scaling(result, tmp_path / "plot.svg")
    assert "</svg>" in (tmp_path / "plot.svg").read_text()
