"""The card beside a published adapter: what it is, how to load it, and what it may claim about privacy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from secure_triplay.config import Backbone, Study
from secure_triplay.constants import epsilon_of_study
from secure_triplay.report import words
from secure_triplay.report.html import render
from secure_triplay.report.summary import BackboneUsed, Summary, write_text

BIAS = "class_bias.json"


def write_adapter_card(summary: Summary, folder: str | Path) -> Path:
    """Write `README.md` into the adapter's folder, over the empty card of peft. Raises RunError."""
    return write_text(Path(folder) / "README.md", adapter_card(summary))


def adapter_card(summary: Summary) -> str:
    """The card's Markdown: YAML front matter, then the claims; in red where differential privacy was off."""
    sites = [(entry, words.guarantee(entry)) for entry in summary.privacy] if summary.dp == "on" else []
    text = render(
        "card.md.j2",
        summary=summary,
        headline=words.headline(summary),
        limits=words.limits(summary, figures_by_site=False),
        spent=words.spent(summary),
        sites=sites,
        same=len({claim for _, claim in sites}) == 1,
        loading=loading_code(summary.backbone),
    )
    return _card(_front_matter(summary), text)


def write_study_card(
    study: Study, described: Sequence[tuple[str, str]], rounds: int, folder: str | Path
) -> Path:
    """Write `README.md` into a site's copy of the study's adapter. Raises RunError, and what `study_card` raises."""
    return write_text(Path(folder) / "README.md", study_card(study, described, rounds))


def study_card(study: Study, described: Sequence[tuple[str, str]], rounds: int) -> str:
    """The Markdown card that a site of a real federation writes: of public settings alone, after so many rounds.

    `described` is `describe.describe` of the study. Raises PrivacyError where no noise keeps the study's epsilon.
    """
    dp = study.dp
    epsilon = None if dp is None else epsilon_of_study(study)
    front = {
        "library_name": "peft",
        "base_model": study.backbone.name,
        "tags": [
            "lora",
            "clip",
            "federated-learning",
            "unsafe-no-differential-privacy" if dp is None else "differential-privacy",
        ],
        "secure_triplay": {
            "study": " ".join(study.study.split()),
            "config_sha256": study.file_sha256,
            "rounds": rounds,
            "dp": "off" if dp is None else "on",
            "epsilon_per_site": epsilon,
            "delta": None if dp is None else dp.delta,
            "unit": None if dp is None else dp.unit,
        },
    }
    text = render(
        "study.md.j2",
        study=study,
        described=described,
        rounds=rounds,
        dp=dp,
        spent=epsilon,
        shared=study.shared_noise is not None,
        loading=loading_code(study.backbone),
    )
    return _card(front, text)


def write_personal_card(
    study: Study, site: str, rounds: int, folder: str | Path, bias: NDArray[np.float32] | None = None
) -> Path:
    """Write `README.md` into a personal adapter's folder, and its bias (n_classes,) of the logits, if it has one.

    Raises RunError, and PrivacyError or ConfigError.
    """
    if bias is not None:
        by_class = {entry.name: float(value) for entry, value in zip(study.classes, bias, strict=True)}
        content = {"logit_scale": study.training.logit_scale, "bias": by_class}
        write_text(Path(folder) / BIAS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return write_text(Path(folder) / "README.md", personal_card(study, site, rounds, biased=bias is not None))


def personal_card(study: Study, site: str, rounds: int, *, biased: bool = False) -> str:
    """The Markdown card of one site's personal adapter, made of its updates of so many rounds.

    Its epsilon is the site's own: what the study was charged there. Raises PrivacyError, and ConfigError for a study
    without privacy, which has no such adapter.
    """
    epsilon, dp = epsilon_of_study(study), study.dp
    assert dp is not None  # it has an epsilon
    front = {
        "library_name": "peft",
        "base_model": study.backbone.name,
        "tags": ["lora", "clip", "personal-adapter", "do-not-share", "differential-privacy"],
        "secure_triplay": {
            "personal_adapter_of": " ".join(site.split()),
            "study": " ".join(study.study.split()),
            "config_sha256": study.file_sha256,
            "own_updates": rounds,
            "class_bias": biased,
            "epsilon_of_site": epsilon,
            "delta": dp.delta,
            "unit": dp.unit,
        },
    }
    text = render(
        "personal.md.j2",
        study=study,
        site=site,
        rounds=rounds,
        biased=biased,
        bias_file=BIAS,
        spent=epsilon,
        dp=dp,
        loading=loading_code(study.backbone),
    )
    return _card(front, text)


def loading_code(backbone: BackboneUsed | Backbone) -> str:
    """Python that loads this adapter with plain peft onto the backbone it was trained on."""
    settings: dict[str, Any] = {"source": backbone.source, "name": backbone.name}
    if backbone.unsafe_random_weights:
        settings["unsafe_random_weights"] = True
    else:
        settings["sha256"] = backbone.sha256
        if backbone.source == "file":
            # Where the file lay on the machine that trained is nobody's business; its hash identifies it.
            settings["pretrained"] = "PATH/OF/THE/WEIGHT/FILE"
        elif backbone.pretrained is not None:
            settings["pretrained"] = backbone.pretrained
    if backbone.text_sha256 is not None:
        settings["text_sha256"] = backbone.text_sha256
    settings |= {
        "licence": backbone.licence,
        "allowed_licences": (backbone.licence,),
        "quantization": backbone.quantization,
        "image_size": backbone.image_size,
    }
    lines = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    return (
        "from peft import PeftModel\n"
        "from secure_triplay.config import Backbone\n"
        "from secure_triplay.model.backbone import load_backbone\n"
        "\n"
        f"settings = Backbone(\n{lines})\n"
        'model = PeftModel.from_pretrained(load_backbone(settings).model, "FOLDER/OF/THIS/CARD")\n'
    )


def _card(front: dict[str, Any], text: str) -> str:
    """A card's Markdown after its front matter."""
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)}---\n\n{text}"


def _front_matter(summary: Summary) -> dict[str, Any]:
    """What hubs and scripts read. No licence is given: the adapter's is for the sites to choose."""
    most = words.spent(summary)
    return {
        "library_name": "peft",
        "base_model": summary.backbone.name,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [
            "lora",
            "clip",
            "federated-learning",
            "differential-privacy" if summary.dp == "on" else "unsafe-no-differential-privacy",
        ],
        "secure_triplay": {
            "study": " ".join(summary.study.split()),
            "config_sha256": summary.config_sha256,
            "backbone_sha256": summary.backbone.sha256,
            "backbone_licence": summary.backbone.licence,
            "quantization": summary.backbone.quantization,
            "dp": summary.dp,
            "epsilon_per_site": most.epsilon,
            "delta": most.delta,
            "unit": most.unit,
            "neighbouring": most.neighbouring,
            "accountant": most.accountant if summary.dp == "on" else None,
        },
    }
