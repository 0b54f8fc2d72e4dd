"""Memory of the frozen weights in each quantization, for the packaged towers and for CLIP ViT-B-32.

ViT-B-32 has random weights here: bytes do not depend on their values, and that is said in the result.
"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from secure_triplay.config import Backbone
from secure_triplay.model.backbone import load_backbone

PACKAGED = {
    "source": "packaged",
    "name": "dinov2-small-minilm-l6",
    "sha256": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    "text_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "licence": "Apache-2.0",
    "image_size": 56,
}
VIT_B_32 = {
    "source": "open_clip",
    "name": "ViT-B-32",
    "licence": "MIT",
    "image_size": 224,
    "unsafe_random_weights": True,
}


def run_backbone_bench() -> dict[str, Any]:
    """Bytes of the frozen weights: `rows[]` of {name, weights, quantization, image_bytes, both_bytes, ratios}."""
    rows = []
    for settings in (PACKAGED, VIT_B_32):
        full: dict[str, int] = {}
        for quantization in ("none", "int8", "nf4"):
            loaded = load_backbone(Backbone.model_validate(settings | {"quantization": quantization}))
            sizes = {"image_bytes": loaded.image_frozen_bytes, "both_bytes": loaded.frozen_bytes}
            full = full or sizes
            rows.append(
                {
                    "name": settings["name"],
                    "weights": "random" if settings.get("unsafe_random_weights") else "pretrained",
                    "quantization": quantization,
                    **sizes,
                    "image_of_fp32": sizes["image_bytes"] / full["image_bytes"],
                    "both_of_fp32": sizes["both_bytes"] / full["both_bytes"],
                }
            )
    return {"suite": "backbone", "schema": 1, "rows": rows}


def backbone_table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    table = Table(
        title="Memory of the frozen weights, MB and share of fp32", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for title in ("backbone", "weights", "in", "image", "share", "both", "share"):
        table.add_column(title, justify="left" if title in ("backbone", "weights", "in") else "right")
    for row in result["rows"]:
        table.add_row(
            row["name"], row["weights"], row["quantization"],
            f"{row['image_bytes'] / 1e6:.1f}", f"{row['image_of_fp32']:.2f}",
            f"{row['both_bytes'] / 1e6:.1f}", f"{row['both_of_fp32']:.2f}",
        )  # fmt: skip
    return table
