"""A study in plain words: what it will do, with whose data, under which guarantee.

For `secure-triplay config check`, and for whoever decides whether a site takes part.
"""

from __future__ import annotations

import math

from secure_triplay.config import DpOff, FashionMnist, Manifest, Study
from secure_triplay.constants import (
    class_count_rule,
    count_rule,
    epsilon_of_shares,
    noise_multiplier,
    share_rule,
)
from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.privacy.shares import holds_against


def describe(study: Study) -> list[tuple[str, str]]:
    """(topic, sentence) pairs."""
    return [
        (
            "Study",
            f"{study.study}, configuration {study.sha256[:16]}…, {len(study.sites)} sites: "
            + ", ".join(site.name for site in study.sites)
            + ".",
        ),
        ("Data", _data(study)),
        ("Model", _model(study)),
        ("Adapter", _adapter(study)),
        ("Training", _training(study)),
        ("Privacy", _privacy(study)),
        ("Upload", _upload(study)),
        (
            "Server",
            "It adds encrypted updates and holds no key. It learns which site took part in which round, when, "
            "hashes of ledgers, and the size of an update, which is the same for all. When messages come tells it "
            "roughly how long training took and how many images a site measures; nothing prevents that.",
        ),
        ("Together", together(study)),
        (
            "Not protected",
            _not_protected(study),
        ),
    ]


def together(study: Study) -> str:
    """Who would have to collude for one site's update to be seen, on the whole roster."""
    masking = choose_masking(study)
    if masking is not None:
        return masking.in_words()
    return (
        "All sites share one key: the server and one site together can read every site's updates."
        if len(study.sites) > 1
        else "With one site, the sum is its update."
    )


def read_this(study: Study, n_sites: int) -> str:
    """What a person who decides for a site has to know of who can see its updates."""
    masking = choose_masking(study, n_sites)
    last = "only differential privacy protects" if study.dp else "nothing protects"
    if masking is None:
        return (
            "All sites share one key. THE SERVER AND ONE SITE TOGETHER CAN READ EVERY SITE'S UPDATES; then "
            f"{last}. Say no if you do not trust each of the sites above that far."
        )
    return (
        f"{masking.in_words()} Fewest honest sites in any sum that is opened: {masking.fewest_honest_survivors}. "
        f"Against more helpers {last}.{shared_noise(study)} Say no if that is not enough for you."
    )


def _not_protected(study: Study) -> str:
    left = "only differential privacy then protects." if study.dp else "nothing then protects."
    masking = choose_masking(study)
    if masking is None:
        return f"One key is shared by all sites: server and one site together can read every site's updates; {left}"
    more = masking.colluders + 1
    return (
        f"Server and {more} site{'s' * (more != 1)} together may read every site's updates; {left} What the sum of the "
        "others tells, each site learns."
    )


def _data(study: Study) -> str:
    data = study.data
    if isinstance(data, FashionMnist):
        return (
            f"Fashion-MNIST: {data.records_per_site:,} training images a site, {data.holdout_per_site:,} held back, "
            f"divided by {data.partition.kind}; {data.public_images:,} public images align the projection"
            f"{' and give A' * (study.adapter.basis == 'public')}, {data.test_images:,} public images measure."
        )
    assert isinstance(data, Manifest)
    if data.manifest is None:
        return (
            f"Each site's own manifest; images stay where they are. About {data.holdout_fraction:.0%} of its patients "
            "(of its images, where no patients are named) are held back to measure with, each by a hash of its name."
        )
    return (
        f"{data.manifest}, divided over the simulated sites by {data.partition.kind}; no patient is at two sites; "
        f"{_test_set(data)}{_public(data)}."
    )


def _test_set(data: Manifest) -> str:
    """In the order in which `data.split` decides."""
    if data.test_domain is not None:
        return f"all of domain {data.test_domain} is the public test set"
    if data.test_manifest is not None:
        return f"{data.test_manifest} is the public test set"
    return f"{data.test_fraction:.0%} of patients are the public test set"


def _public(data: Manifest) -> str:
    """What is taken for public without being of another manifest."""
    return (
        f"; {data.public_images:,} images of patients at no site count as public: nothing protects them"
        * bool(data.public_images)
    )


def _model(study: Study) -> str:
    backbone = study.backbone
    weights = (
        "RANDOM WEIGHTS, for measuring size and speed only"
        if backbone.unsafe_random_weights
        else (f"weights sha256 {(backbone.sha256 or '')[:16]}…")
    )
    return (
        f"{backbone.name} ({weights}), licence {backbone.licence}, frozen in {backbone.quantization}, "
        f"at {backbone.image_size} px."
    )


def _adapter(study: Study) -> str:
    of = study.adapter
    fitted = ", fitted to public images" if of.basis == "public" else ""
    few = f", in the {of.output_rank} directions of a layer's outputs that move their logits" * bool(
        of.output_rank
    )
    kind = {
        "ffa": f"A is frozen and public{fitted}; B is trained and sent{few}",
        "lora": "A and B are trained and sent",
    }
    ranks = {site.name: site.rank for site in study.sites if site.rank is not None}
    own = "".join(f" Site {name} trains {rank} columns of B." for name, rank in ranks.items())
    text = " and of the text tower's" * of.text_tower
    where = f"{of.target_modules} of the last {of.last_blocks} block{'s' * (of.last_blocks != 1)}{text}"
    return f"LoRA of rank {of.rank} on {where}; {kind[of.kind]}.{own}"


def _training(study: Study) -> str:
    training, optimiser = study.training, study.server_optimiser
    units, used = "records", ""
    if study.dp and study.dp.unit == "patient":
        units = "patients"
        used = f", with at most {study.dp.max_records_per_patient} images of each patient drawn"
    share = f"{100 * study.privacy.sampling_rate:.3g}%"
    return (
        f"{training.rounds} rounds of {training.steps_per_round} step(s), each on a random {share} of a site's "
        f"{units}{used}; every site applies the mean by {optimiser.kind}."
    )


def _privacy(study: Study) -> str:
    if isinstance(study.privacy, DpOff):
        return "OFF (unsafe_dp_off). The adapter may reveal training images. Not for patients' data."
    dp = study.privacy
    return (
        f"epsilon {dp.epsilon:g} at delta {dp.delta:g} per {dp.unit} and site, for adding or removing one {dp.unit}; "
        f"noise multiplier {noise_multiplier(study):.3f} over {study.total_steps} steps. Someone whose data lie at k "
        f"sites spends k such budgets.{_published(study)}{_biased(study)}{shared_noise(study)}"
    )


def shared_noise(study: Study) -> str:
    """Against whom the guarantee holds where sites share their noise, and what is left against others; else nothing."""
    rule = share_rule(study)
    if rule is None:
        return ""
    n, c = len(study.sites), rule.colluders
    few = (
        f"Against {c + 1} other sites without the server, in a sum of all {n}, it is epsilon "
        f"{_epsilon_of(study, n - c - 1)}. "
        if n - 2 > c
        else ""
    )
    return (
        f" {holds_against(rule.honest_shares, c)} {few}Against all other sites together, or the server with more than "
        f"{c}, only a site's own share is left: epsilon {_epsilon_of(study, 1)}. In a round with fewer than "
        f"{rule.honest_shares + c} sites nothing is unmasked."
    )


def _epsilon_of(study: Study, honest_shares: int) -> str:
    """Rounded up, as a figure that people decide on."""
    value = epsilon_of_shares(study, honest_shares)
    return "without bound" if math.isinf(value) else f"{math.ceil(10 * value) / 10:g}"


def _published(study: Study) -> str:
    rule = count_rule(study)
    if rule is None:
        return ""
    return (
        " After the last round each site releases how many held-back records the adapter gets right, with noise of "
        f"{rule.noise_std:.0f} records (one standard deviation), charged to the same epsilon."
    )


def _biased(study: Study) -> str:
    rule = class_count_rule(study)
    if rule is None:
        return ""
    and_training = " and its training" if study.trains_with_bias else ""
    return (
        f" Each site counts its classes for its personal adapter{and_training}, with noise of "
        f"{rule.noise_std:.0f} records on each, charged to the same epsilon; the counts never leave it."
    )


def _upload(study: Study) -> str:
    bits = "sums of shared noise" if study.shared_noise else f"{study.codec.value_bits} bits a value"
    return f"{bits}, exact sums in CKKS ciphertexts."
