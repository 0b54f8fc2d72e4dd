"""From the sites' journals and the server's log to one summary, and what a finished run's folder holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_triplay import __version__
from secure_triplay.config import DpOn, Study
from secure_triplay.constants import (
    charge_of_rounds,
    charges_of,
    choose_codec,
    count_rule,
    epsilon_of_shares,
    noise_multiplier,
    share_rule,
)
from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.crypto.parameters import MODULUS_BITS
from secure_triplay.errors import RunError
from secure_triplay.privacy import accounting
from secure_triplay.privacy.shares import ShareRule
from secure_triplay.report import summary as report
from secure_triplay.report.card import write_adapter_card
from secure_triplay.report.run import write_run_report

Event = dict[str, Any]

_VERSIONED = (
    "torch",
    "open_clip_torch",
    "timm",
    "peft",
    "bitsandbytes",
    "opacus",
    "dp-accounting",
    "tenseal",
    "flwr",
    "cryptography",
    "numpy",
)


@dataclass(frozen=True)
class Collected:
    """What a simulation's harness gathered: the sites' journals, the server's event log, and elapsed seconds."""

    study: Study
    journals: dict[str, list[Event]]
    server: list[Event]
    started_utc: str
    setup_s: float
    wall_s: float

    def of(self, site: str, event: str) -> list[Event]:
        """A site's entries of one kind, in order."""
        return [entry for entry in self.journals[site] if entry["event"] == event]

    @property
    def server_stats(self) -> dict[str, Any]:
        """The summing process' last words on itself."""
        stats: dict[str, Any] = self.server[-1]["stats"]
        return stats

    @property
    def sites(self) -> list[str]:
        """Site names in the study's order."""
        return [site.name for site in self.study.sites]


def summarise(run: Collected) -> report.Summary:
    """The summary of a run. Raises RunError where sites disagree or the figures contradict each other."""
    study, masking = run.study, choose_masking(run.study)
    finals = {run.of(site, "finished")[0]["adapter_sha256"] for site in run.sites}
    if len(finals) != 1:
        raise RunError(
            "the sites ended with different adapters",
            where="simulation",
            fix="report this with the run's journals",
        )
    loaded = run.of(run.sites[0], "loaded")[0]
    return report.Summary(
        study=study.study,
        seed=study.seed,
        rounds=study.training.rounds,
        config_sha256=study.file_sha256,
        dp="on" if study.dp else "off",
        accuracy=_accuracy(run),
        privacy=tuple(_privacy(study, site, loaded["n_params"]) for site in run.sites),
        upload=_upload(run, loaded["n_params"]),
        timing=_timing(run),
        memory=report.Memory(
            client_peak_bytes=max(run.of(site, "finished")[0]["peak_rss_bytes"] for site in run.sites),
            server_peak_bytes=run.server_stats["peak_rss_bytes"],
        ),
        backbone=_backbone(study, loaded),
        adapter=report.AdapterMade(
            kind=study.adapter.kind,
            rank=study.adapter.rank,
            alpha=study.adapter.alpha,
            target_modules=study.adapter.target_modules,
            last_blocks=study.adapter.last_blocks,
            text_tower=study.adapter.text_tower,
            n_params=loaded["n_params"],
        ),
        federation=report.Federation(
            sites=tuple(run.sites),
            data=_data(study),
            records_per_site={site: run.of(site, "loaded")[0]["records"] for site in run.sites},
            uploads_refused=sum(run.server_stats["refused"].values()),
            encryption=_encryption(study, loaded["n_params"]),
            aggregation="shared-key" if masking is None else "masked",
            colluders=None if masking is None else masking.colluders,
            threshold=None if masking is None else masking.threshold,
        ),
        versions=versions(),
        started_utc=run.started_utc,
    )


def _accuracy(run: Collected) -> report.Accuracy:
    measured = {site: run.of(site, "measured") for site in run.sites}
    public = [
        (sum(entry["public_correct"] for entry in entries), sum(entry["public_total"] for entry in entries))
        for entries in zip(*measured.values(), strict=True)
    ]
    shares = [correct / total for correct, total in public]
    own = {
        site: [entry["holdout_correct"] / entry["holdout_total"] for entry in entries]
        for site, entries in measured.items()
        if entries[0]["holdout_total"]
    }
    worst = min(own, key=lambda site: own[site][-1], default=None)
    return report.Accuracy(
        baseline=shares[0],
        final=shares[-1],
        test_records=public[0][1],
        baseline_is=_baseline(run.study, run.of(run.sites[0], "loaded")[0]["aligned_on"]),
        per_round=tuple(shares[1:]),
        per_site={
            site: report.SiteAccuracy(
                baseline=values[0],
                final=values[-1],
                records=measured[site][0]["holdout_total"],
                personal=_personal(run, site),
            )
            for site, values in own.items()
        },
        per_site_per_round={site: tuple(values[1:]) for site, values in own.items()},
        published=_published(run),
        worst_site=None
        if worst is None
        else report.WorstSite(name=worst, baseline=own[worst][0], final=own[worst][-1]),
    )


def _personal(run: Collected, site: str) -> float | None:
    """Accuracy of a site's personal adapter on its own held-back records; None where it made none."""
    made = run.of(site, "personal")
    return made[0]["holdout_correct"] / made[0]["holdout_total"] if made else None


def _published(run: Collected) -> report.PublishedCounts | None:
    rule = count_rule(run.study)
    if rule is None:
        return None
    (said,) = run.of(run.sites[0], "published")
    return report.PublishedCounts(
        correct=said["correct"],
        records=said["total"],
        noise_std=rule.noise_std * said["sites"] ** 0.5,
        sites=said["sites"],
    )


def _privacy(study: Study, site: str, n_params: int) -> report.SitePrivacy:
    if not isinstance(study.privacy, DpOn):
        return report.SitePrivacy(
            site=site,
            epsilon=None,
            delta=None,
            unit="record",
            accountant="none",
            noise_multiplier=0.0,
            sampling_rate=study.privacy.sampling_rate,
            steps=study.total_steps,
        )
    dp, noise, shares = study.privacy, noise_multiplier(study), share_rule(study)
    whole = charges_of(study)
    return report.SitePrivacy(
        site=site,
        epsilon=accounting.epsilon(whole, dp.delta),
        delta=dp.delta,
        unit=dp.unit,
        accountant=accounting.accountant_of(whole),
        noise_multiplier=noise,
        sampling_rate=dp.sampling_rate,
        steps=study.total_steps,
        epsilon_budget=dp.epsilon,
        epsilon_check_prv=None if shares else accounting.epsilon_prv_check(whole, dp.delta),
        l2_clip_norm=dp.l2_clip_norm,
        epsilon_by_round=tuple(
            accounting.epsilon([charge_of_rounds(study, done)], dp.delta)
            for done in range(1, study.training.rounds + 1)
        ),
        shared_noise=None if shares is None else _shared_noise(study, shares, n_params),
    )


def _shared_noise(study: Study, rule: ShareRule, n_params: int) -> report.SharedNoiseMade:
    alone = epsilon_of_shares(study, 1)
    return report.SharedNoiseMade(
        colluders=rule.colluders,
        honest_shares=rule.honest_shares,
        clip_steps=rule.clip_steps,
        l2_sensitivity=rule.l2_sensitivity,
        share_std=rule.share_variance**0.5,
        sum_bits=choose_codec(study, n_params).field_bits,
        epsilon_alone=alone if math.isfinite(alone) else None,
    )


def _upload(run: Collected, n_params: int) -> report.Upload:
    up = max(entry["upload_bytes"] for site in run.sites for entry in run.of(site, "uploaded"))
    down = max(entry["download_bytes"] for site in run.sites for entry in run.of(site, "applied"))
    return report.Upload(
        bytes_per_site_per_round=up,
        n_params=n_params,
        plaintext_fp32_bytes=4 * n_params,
        bytes_per_param=up / n_params,
        download_bytes_per_site_per_round=down,
        download_bytes_per_param=down / n_params,
    )


def _timing(run: Collected) -> report.Timing:
    uploads = {site: run.of(site, "uploaded") for site in run.sites}
    applied = {site: run.of(site, "applied") for site in run.sites}
    starts = [min(run.of(site, "ready")[0]["time"] for site in run.sites)]
    sum_s = [0.0, *(entry["stats"]["sum_s"] for entry in run.server if entry["event"] == "closed")]
    rounds = []
    for index in range(run.study.training.rounds):
        end = max(entries[index]["time"] for entries in applied.values())
        rounds.append(
            report.RoundTiming(
                train_s=sum(entries[index]["train_s"] for entries in uploads.values()),
                encode_encrypt_s=sum(entries[index]["encode_encrypt_s"] for entries in uploads.values()),
                server_sum_s=sum_s[index + 1] - sum_s[index],
                decrypt_apply_s=sum(entries[index]["decrypt_apply_s"] for entries in applied.values()),
                wall_s=max(0.0, end - starts[-1]),
            )
        )
        starts.append(end)

    def total(name: str) -> float:
        return float(sum(getattr(each, name) for each in rounds))

    return report.Timing(
        train_s=total("train_s"),
        encode_encrypt_s=total("encode_encrypt_s"),
        server_sum_s=total("server_sum_s"),
        decrypt_apply_s=total("decrypt_apply_s"),
        wall_s=run.wall_s,
        setup_s=run.setup_s,
        by_round=tuple(rounds),
    )


def _backbone(study: Study, loaded: Event) -> report.BackboneUsed:
    chosen = study.backbone
    return report.BackboneUsed(
        name=chosen.name,
        sha256="random" if chosen.unsafe_random_weights else str(chosen.sha256),
        licence=chosen.licence,
        quantization=chosen.quantization,
        frozen_bytes=loaded["frozen_bytes"],
        source=chosen.source,
        pretrained=chosen.pretrained if chosen.source == "open_clip" else None,
        text_sha256=chosen.text_sha256,
        image_size=chosen.image_size,
        align_ridge=chosen.align_ridge,
        aligned_on_public_images=loaded["aligned_on"],
        unsafe_random_weights=chosen.unsafe_random_weights,
    )


def _baseline(study: Study, aligned_on: int) -> str:
    if study.backbone.source != "packaged":
        return "the model without adapter"
    return f"the model without adapter, its projection aligned on {aligned_on} public images"


def _data(study: Study) -> str:
    return "Fashion-MNIST" if study.data.kind == "fashion-mnist" else "site data by manifest"


def _encryption(study: Study, n_params: int) -> dict[str, str | int | float]:
    codec = choose_codec(study, n_params)
    return {
        "scheme": "CKKS, symmetric, seeded; exact integer sums",
        "degree": codec.parameters.degree,
        "modulus_bits": MODULUS_BITS,
        "scale_bits": codec.scale_bits,
        "value_bits": codec.value_bits,
        "field_bits": codec.field_bits,
        "chunks": codec.n_chunks,
        "range": codec.limit,
        "context_id": codec.parameters.context_id.hex(),
    }


def versions() -> dict[str, str]:
    """Versions of this package and of what its figures depend on."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {"secure_triplay": __version__, "python": platform.python_version(), **found}


def write_outputs(summary: report.Summary, study: Study, folder: Path) -> report.Summary:
    """Write summary, adapter with card, report and study into a run's folder -> the summary as written.

    The adapter is the first site's; all sites ended with the same one, and their copies go.
    """
    first, *others = (folder / "sites" / name / "adapter" for name in summary.federation.sites)
    shutil.move(first, folder / "adapter")
    for copy in others:
        shutil.rmtree(copy)
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "adapter").iterdir())
    }
    adapter = summary.adapter.model_copy(update={"files_sha256": files})
    summary = summary.model_copy(update={"adapter": adapter})
    (folder / "study.json").write_bytes(study.canonical())
    write_adapter_card(summary, folder / "adapter")
    report.write_summary(summary, folder / "summary.json")
    write_run_report(summary, folder / "report.html")
    return summary
