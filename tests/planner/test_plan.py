"""A plan answers what was asked, invents nothing, and refuses the impossible in plain sentences."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from secure_triplay import durable
from secure_triplay.config import PublishedAccuracy, Study, load_study
from secure_triplay.config.training import PersonalBias
from secure_triplay.constants import epsilon_of_study, noise_multiplier
from secure_triplay.errors import PrivacyError, RunError
from secure_triplay.planner.page import write_plan
from secure_triplay.planner.plan import plan_budget
from secure_triplay.planner.table import percent_up, plan_table
from secure_triplay.privacy.accounting import epsilon as authoritative
from secure_triplay.privacy.mechanisms import DpSgdCharge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(ROOT / "configs" / "demo.yaml")


@pytest.fixture(scope="module")
def plan(study, tmp_path_factory):
    return plan_budget(study, measured=tmp_path_factory.mktemp("none") / "result.json")


def shown(plan, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(plan_table(plan))
    return console.file.getvalue()


def changed(study: Study, **privacy: object) -> Study:
    return study.model_copy(update={"privacy": study.privacy.model_copy(update=privacy)})


def test_planned_noise_is_the_noise_that_the_run_will_use(study, plan):
    assert plan.chosen.noise_multiplier == noise_multiplier(study)


def test_a_noise_gives_the_epsilon_of_the_authoritative_accountant(study):
    plan = plan_budget(study, noise_multiplier=2.0, rounds=10, delta=1e-6)
    charge = DpSgdCharge(2.0, study.dp.sampling_rate, 10 * study.training.steps_per_round)
    assert plan.chosen.epsilon == authoritative([charge], 1e-6)
    assert plan.question == "epsilon of a noise"


@pytest.mark.parametrize(
    "counts",
    [
        {"published_accuracy": PublishedAccuracy(noise_multiplier=2.0)},
        {"personal_bias": PersonalBias(noise_multiplier=2.0)},
    ],
)
def test_a_plan_counts_everything_that_the_study_charges(study, counts):
    more = study.model_copy(update=counts)
    plan = plan_budget(more)
    assert plan.chosen.noise_multiplier == noise_multiplier(more) > noise_multiplier(study)
    assert any("releases counts" in note for note in plan.notes)
    assert all(ceiling.exact is None for _, ceiling in (*plan.meaning.membership, *plan.meaning.gallery))
    assert plan_budget(
        more, noise_multiplier=plan.chosen.noise_multiplier
    ).chosen.epsilon == epsilon_of_study(more)


def test_the_smallest_epsilons_that_a_study_may_ask_for_have_a_plan(study):
    assert plan_budget(study, epsilon=0.01).families[0].epsilon < 0.1


def test_more_noise_than_any_epsilon_asks_for_is_refused_in_words(study):
    with pytest.raises(PrivacyError, match="nothing to learn"):
        plan_budget(study, noise_multiplier=1e300)


def test_every_cell_of_the_table_keeps_its_epsilon(plan):
    for cell in plan.table[::7]:
        spent = authoritative(
            [DpSgdCharge(cell.noise_multiplier, cell.sampling_rate, cell.steps)], cell.delta
        )
        assert 0.985 * cell.epsilon <= spent <= cell.epsilon * (1 + 2e-4)
        assert cell.delta <= 1 / (100 * cell.site_size) * (1 + 1e-9)


def test_more_rounds_and_smaller_sites_need_more_noise(plan):
    at = plan.chosen
    noise = {(cell.epsilon, cell.rounds, cell.site_size): cell.noise_multiplier for cell in plan.table}
    rounds = sorted({cell.rounds for cell in plan.table})
    by_rounds = [noise[at.epsilon, turns, at.site_size] for turns in rounds]
    sizes = sorted({cell.site_size for cell in plan.table})
    by_size = [noise[at.epsilon, at.rounds, size] for size in sizes]
    assert by_rounds == sorted(by_rounds)
    assert by_size == sorted(by_size, reverse=True)


def test_a_larger_epsilon_leaves_more_to_an_attacker(plan):
    found = [meaning.membership[0][1].tight for meaning in plan.meanings]
    assert found == sorted(found)
    assert all(ceiling.chance < ceiling.tight < 1 for m in plan.meanings for _, ceiling in m.membership)


def test_accuracy_is_not_invented(plan):
    assert plan.accuracy_missing == "not measured yet"
    assert all(not meaning.measured for meaning in plan.meanings)
    assert "not measured yet" in shown(plan)


def test_accuracy_is_read_from_the_committed_measurements_and_marked(study, tmp_path):
    rows = [
        {"data": "fashion-mnist", "method": "start", "accuracy_mean": 0.70, "accuracy_std": 0.0, "seeds": 3},
        {"data": "fashion-mnist", "method": "no-dp", "accuracy_mean": 0.80, "accuracy_std": 0.01, "seeds": 3},
        {"data": "fashion-mnist", "method": "eps8", "accuracy_mean": 0.786, "accuracy_std": 0.01, "seeds": 3},
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"rows": rows}))
    plan = plan_budget(study, measured=path)
    (figure,) = plan.meaning.measured
    assert (figure.accuracy, figure.start, figure.without_dp) == (0.786, 0.70, 0.80)
    assert [bool(m.measured) for m in plan.meanings] == [m.epsilon == 8 for m in plan.meanings]
    assert "78.6 %" in shown(plan, 120)
    assert "measured" in shown(plan, 120)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"rows": [{"data": 1}]}', '{"rows": [{"data": "a", "method": "eps8"}]}']
)
def test_unreadable_measurements_are_named_and_not_guessed(study, tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    assert "cannot be read" in plan_budget(study, measured=path).accuracy_missing


def test_families_are_worse_off_than_one_and_it_is_printed(plan):
    costs = [plan.chosen.epsilon, *(family.epsilon for family in plan.families)]
    assert costs == sorted(costs)
    assert "Families" in shown(plan)


def test_plan_fits_80_columns_and_is_json(plan):
    assert max(len(line) for line in shown(plan).splitlines()) <= 80
    content = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert content["chosen"]["noise_multiplier"] == plan.chosen.noise_multiplier
    assert content["meanings"][0]["membership"][0]["false_positive_rate"] == 0.01


def test_page_and_plots_are_written_and_stand_alone(plan, tmp_path):
    files = write_plan(plan, tmp_path)
    page = (tmp_path / "plan.html").read_text()
    assert len(files) == 4
    assert page.count('<svg class="plot"') == 2
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "var(--" not in (tmp_path / "epsilon-by-noise.svg").read_text()


def test_a_plan_is_written_whole_or_not_at_all_and_over_nothing(plan, tmp_path, monkeypatch):
    written = []

    def third_fails(path, content, real=durable.replace):
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content)

    monkeypatch.setattr(durable, "replace", third_fails)
    with pytest.raises(RunError, match="No space left") as failed:
        write_plan(plan, tmp_path / "plan")
    assert failed.value.where == str(tmp_path / "plan")
    assert os.listdir(tmp_path) == []
    write_plan(plan, tmp_path / "plan")
    before = (tmp_path / "plan" / "plan.json").read_bytes()
    with pytest.raises(RunError, match="nothing is overwritten"):
        write_plan(plan, tmp_path / "plan")
    assert (tmp_path / "plan" / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"epsilon": 0.0}, "nothing may be learned"),
        ({"epsilon": -1.0}, "cannot be reached"),
        ({"epsilon": 500.0}, "an attacker could be certain"),
        ({"epsilon": float("nan")}, "cannot be reached: it has to be a finite number"),
        ({"delta": 0.0}, "not a small probability"),
        ({"delta": 0.1}, "too large for up to 2,000 records"),
        ({"delta": 1.0}, "not a small probability"),
        ({"rounds": -3}, "-3 rounds of training are impossible"),
        ({"rounds": 0}, "0 rounds"),
        ({"rounds": 10**9}, "rounds of training are impossible"),
        ({"noise_multiplier": 0.0}, "no protection"),
        ({"noise_multiplier": 0.01}, "protects nobody"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "one follows from the other"),
    ],
)
def test_the_impossible_is_refused_in_a_sentence_with_a_way_out(study, asked, says):
    with pytest.raises(PrivacyError) as refused:
        plan_budget(study, **asked)
    assert says in refused.value.what
    assert refused.value.fix
    assert refused.value.where


def test_more_patients_a_step_than_exist_are_refused(study):
    with pytest.raises(
        PrivacyError, match="a step would use 3,000 records of a site on average, but no site"
    ):
        plan_budget(changed(study, expected_batch_size=3000.0))


def test_a_study_without_privacy_has_no_budget_to_plan(study):
    from secure_triplay.config import DpOff

    off = DpOff(unsafe_dp_off=True, sampling_rate=0.5, expected_batch_size=10.0)
    with pytest.raises(PrivacyError, match="without differential privacy"):
        plan_budget(study.model_copy(update={"privacy": off}))


def test_sites_too_small_for_a_step_are_named(study):
    plan = plan_budget(changed(study, sampling_rate=0.8))
    assert plan.impossible_sizes
    assert "too small" in shown(plan)


@pytest.mark.parametrize(
    ("share", "text"), [(0.14501, "14.6 %"), (0.04071, "4.08 %"), (0.9997, "100 %"), (0.01, "1 %")]
)
def test_ceilings_are_rounded_up(share, text):
    assert percent_up(share) == text


def test_planning_loads_nothing_heavy():
    """What an answer within two seconds rests on; the time itself is no matter for a test."""
    script = (
        "import sys, rich.console\n"
        "from secure_triplay.config import load_study\n"
        "from secure_triplay.planner.plan import plan_budget\n"
        "from secure_triplay.planner.table import plan_table\n"
        "import io\n"
        "plan = plan_budget(load_study('configs/demo.yaml'))\n"
        "rich.console.Console(file=io.StringIO()).print(plan_table(plan))\n"
        "print(sorted({'torch', 'matplotlib', 'opacus', 'tenseal'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
