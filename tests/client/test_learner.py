"""What a site learns through the whole round is what plain training would have given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from secure_triplay.client.learner import Encoded, Learner, counted_records, encode_records, require_units
from secure_triplay.client.round import make_upload
from secure_triplay.config import parse_study
from secure_triplay.constants import update_noise_std
from secure_triplay.data.records import ArrayRecords
from secure_triplay.errors import AssetError, DataError, PrivacyError
from secure_triplay.loading import load_model
from secure_triplay.privacy.counts import ClassCountRule
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Upload

RECORDS, ROUNDS = 12, 2
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def setting():
    """A study without privacy in which every step sees every record, its model, and encoded records."""
    torch.set_num_threads(1)
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["privacy"] = {"unsafe_dp_off": True, "sampling_rate": 1.0, "expected_batch_size": RECORDS}
    content["codec"] = {"range": 4.0, "value_bits": 16}
    content["training"] = {
        "rounds": ROUNDS,
        "learning_rate": 0.002,
        "logit_scale": 20.0,
        "physical_batch_size": 5,
    }
    content["server_optimiser"] = {"kind": "fedavg"}
    content["backbone"]["compute"] = "float32"
    content["adapter"] |= {"rank": 8, "basis": "seed", "output_rank": None}
    study = parse_study(content)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (RECORDS, 28, 28), np.uint8)
    records = ArrayRecords(pixels, np.arange(RECORDS, dtype=np.int64) % 10)
    try:
        model = load_model(study, records, b"seed")
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")
    return study, model, encode_records(model, records, lambda done, total: None)


def central_training(study, model, encoded) -> np.ndarray:
    """Full-batch gradient descent, by autograd and nothing else."""
    model.adapter.load_vector(np.zeros(model.adapter.n_params, np.float32))
    for _ in range(ROUNDS):
        loss = functional.cross_entropy(model.classifier(encoded.tokens), encoded.labels, reduction="sum")
        gradients = torch.autograd.grad(loss / RECORDS, model.adapter.weights)
        with torch.no_grad():
            for weight, gradient in zip(model.adapter.weights, gradients, strict=True):
                weight -= study.training.learning_rate * gradient
    return model.adapter.vector()


def test_a_bias_in_training_is_added_to_the_logits_that_are_learned_from_and_to_no_others(setting):
    study, model, encoded = setting
    start = np.zeros(model.adapter.n_params, np.float32)
    bias = np.linspace(-3, 2, 10).astype(np.float32)
    learner = Learner(study, model, NoiseSource(), encoded)
    plain, before = learner.update(start), learner.score(start, encoded)
    learner.adjust(bias)
    found = learner.update(start)
    model.adapter.load_vector(start)
    logits = model.classifier(encoded.tokens) + torch.from_numpy(bias)
    loss = functional.cross_entropy(logits, encoded.labels, reduction="sum") / RECORDS
    gradients = torch.autograd.grad(loss, model.adapter.weights)
    wanted = -study.training.learning_rate * torch.cat([g.reshape(-1) for g in gradients]).numpy()
    assert np.abs(wanted - plain).max() > 0.1 * np.abs(plain).max()
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert learner.score(start, encoded) == before
    learner.adjust(np.full(10, 7, np.float32))  # a softmax does not see what all classes get
    assert np.abs(learner.update(start) - plain).max() < 1e-4 * np.abs(plain).max()


def test_without_privacy_and_with_one_site_the_run_equals_central_training(setting, federation_of):
    study, model, encoded = setting
    wanted = central_training(study, model, encoded)
    assert np.abs(wanted).max() > 1e-3
    federation = federation_of(
        [np.zeros(model.adapter.n_params, np.float32)], limit=4.0, value_bits=16, rounds=ROUNDS
    )
    member = replace(federation.members["site-0"], learner=Learner(study, model, NoiseSource(), encoded))
    state = federation.start
    for number in range(1, ROUNDS + 1):
        upload = Upload.from_bytes(make_upload(member, state))
        message = federation.summed([upload], last=number == ROUNDS, round_number=number)
        state = federation.opened("site-0", state, message)
    # two roundings to the quantiser's levels, and what the second gradient makes of the first
    assert np.abs(state.adapter - wanted).max() <= 4 * federation.codec.step


def test_noise_from_a_seed_is_refused(setting):
    study, model, encoded = setting
    with pytest.raises(PrivacyError, match="seed"):
        Learner(study, model, NoiseSource.unsafe_from_seed(1), encoded)


@pytest.fixture
def for_patients(setting):
    """The setting's model in a study whose unit is the patient, a handful of them drawn in every step."""
    content = yaml.safe_load((ROOT / "configs" / "blood-cells.yaml").read_text())
    content["privacy"] |= {"max_units_per_site": 6, "expected_batch_size": 4, "sampling_rate": 1.0}
    content["privacy"] |= {"delta": 1e-3, "max_records_per_patient": 3}
    return parse_study(content)


def test_an_update_as_a_site_keeps_it_has_its_noise_already(setting):
    """A second adapter is made of these updates and charged nothing: where nobody is drawn, they are noise alone."""
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["privacy"] |= {"sampling_rate": 1e-4, "expected_batch_size": 0.2}
    content["adapter"] |= {"rank": 8, "basis": "seed", "output_rank": None}
    study = parse_study(content)
    _, model, encoded = setting
    alone = Encoded(encoded.tokens[:1], encoded.labels[:1], None)
    update = Learner(study, model, NoiseSource(), alone).update(np.zeros(model.adapter.n_params, np.float32))
    assert len(update) == 6144
    assert update.std() == pytest.approx(update_noise_std(study), rel=0.05)
    assert abs(update.mean()) < 5 * update_noise_std(study) / 6144**0.5


def test_encoded_records_keep_whose_they_are(setting):
    model = setting[1]
    owners = np.array([4, 4, 2], np.int64)
    named = ArrayRecords(np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64), owners)
    encoded = encode_records(model, named, lambda done, total: None)
    assert encoded.patients.tolist() == [4, 4, 2]
    assert setting[2].patients is None


def test_records_without_patients_are_refused_before_anything_is_spent(setting, for_patients):
    _, model, encoded = setting
    with pytest.raises(DataError, match="patient_id"):
        Learner(for_patients, model, NoiseSource(), encoded)
    with pytest.raises(DataError, match="patient_id"):
        require_units(for_patients, 12, None)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(1, 3),
    st.sampled_from(["record", "patient"]),
)
def test_one_unit_more_or_less_moves_the_class_counts_by_no_more_than_is_charged(rows, most, unit):
    """Records are (patient, class). Also where records are the unit and some are of one patient."""
    rule = ClassCountRule(1.0, most if unit == "patient" else 1, unit)

    def counts(kept):
        patients, labels = (torch.tensor([row[i] for row in kept], dtype=torch.int64) for i in (0, 1))
        counted = counted_records(Encoded(torch.zeros(len(kept), 1), labels, patients), rule)
        return np.bincount(counted.labels.numpy(), minlength=3)

    units = range(len(rows)) if unit == "record" else {patient for patient, _ in rows}
    for one in units:
        without = [row for place, row in enumerate(rows) if (place if unit == "record" else row[0]) != one]
        assert np.linalg.norm(counts(rows) - counts(without)) <= rule.records_per_unit


def test_a_count_by_patient_refuses_records_that_name_none(setting):
    with pytest.raises(DataError, match="whose they are"):
        counted_records(setting[2], ClassCountRule(1.0, 2, "patient"))


def test_a_site_with_more_patients_than_delta_counts_on_is_refused(setting, for_patients):
    require_units(for_patients, 12, np.arange(12) % 6)  # twelve images, six patients
    with pytest.raises(PrivacyError, match="7 patients"):
        require_units(for_patients, 12, np.arange(12) % 7)
    demo = parse_study(yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text()))
    require_units(demo, 2000, None)
    with pytest.raises(PrivacyError, match="2,001 records"):
        require_units(demo, 2001, None)
    require_units(setting[0], 10**6, None)  # without privacy there is no bound to keep


def test_a_round_of_a_study_for_patients_moves_the_adapter(setting, for_patients):
    _, model, encoded = setting
    owned = Encoded(encoded.tokens, encoded.labels % 3, torch.arange(RECORDS) % 4)
    update = Learner(for_patients, model, NoiseSource(), owned).update(
        np.zeros(model.adapter.n_params, np.float32)
    )
    assert (update != 0).any()
    assert np.isfinite(update).all()
