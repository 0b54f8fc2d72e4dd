"""What a study says of masks, what follows where it says nothing, and how people are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from secure_triplay.config import Masked, SharedKey, parse_study
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.describe import describe, read_this, together
from secure_triplay.errors import ConfigError
from secure_triplay.federation.studybundle import least_quorum

DEMO = yaml.safe_load((Path(__file__).parent.parent / "configs" / "demo.yaml").read_text())
LEFT_OUT = object()


def study_of(n_sites, aggregation=LEFT_OUT):
    content = DEMO | {"sites": [{"name": f"s-{i}"} for i in range(n_sites)]}
    return parse_study(content if aggregation is LEFT_OUT else content | {"aggregation": aggregation})


@pytest.mark.parametrize(("n_sites", "masked"), [(1, False), (2, False), (3, True), (4, True), (40, True)])
def test_studies_of_three_sites_and_more_mask_unless_they_say_otherwise(n_sites, masked):
    assert (choose_masking(study_of(n_sites)) is not None) is masked
    assert choose_codec(study_of(n_sites), 1000).masked is masked
    shared = study_of(n_sites, "shared-key")
    assert shared.aggregation == SharedKey()
    assert choose_masking(shared) is None
    assert not choose_codec(shared, 1000).masked


def test_a_study_states_its_numbers_and_its_hash_covers_them():
    study = study_of(10, {"kind": "masked", "colluders": 2})
    assert study.aggregation == Masked(colluders=2)
    assert (choose_masking(study).colluders, choose_masking(study).threshold) == (2, 7)
    studies = (study, study_of(10), study_of(10, "masked"), study_of(10, "shared-key"))
    assert len({each.sha256 for each in studies}) == len(studies)
    assert choose_masking(study_of(10)) == choose_masking(study_of(10, "masked"))


@pytest.mark.parametrize(
    ("n_sites", "aggregation", "words"),
    [
        (3, {"colluders": 1, "dropouts": 1}, "no dropout is survivable"),
        (4, {"threshold": 2}, "a threshold of 2 does not do"),
        (4, {"colluders": 3}, "the sum is one honest site's update"),
        (4, {"dropouts": 3}, "1 are left"),
    ],
)
def test_numbers_that_cannot_be_had_together_are_refused_with_what_can(n_sites, aggregation, words):
    with pytest.raises(ConfigError, match=words):
        choose_masking(study_of(n_sites, aggregation))


@pytest.mark.parametrize("aggregation", ["plain", "", 3, ["masked"], {"kind": "none"}, {"colluder": 1}])
def test_other_aggregations_are_refused(aggregation):
    with pytest.raises(ConfigError):
        study_of(4, aggregation)
    with pytest.raises(ConfigError, match="two sites or more"):
        study_of(1, "masked")


@given(n=st.integers(2, 50))
def test_defaults_survive_three_in_ten_and_resist_one_site_at_least(n):
    found = MaskingParameters.derive(n)
    assert found.dropouts == 3 * n // 10
    assert found.threshold <= n - found.dropouts
    assert 2 * found.threshold > n + found.colluders
    assert found.colluders >= (n > 2)
    assert found.fewest_honest_survivors >= 2
    # nothing more can be had: one more colluder costs a dropout
    if found.colluders < n - 2:
        with pytest.raises(ConfigError):
            MaskingParameters.choose(n, colluders=found.colluders + 1, dropouts=found.dropouts)


@given(n=st.integers(2, 50), c=st.integers(0, 48), d=st.integers(0, 49))
def test_one_number_given_leaves_the_others_as_large_as_it_allows(n, c, d):
    if c <= n - 2:
        given_c = MaskingParameters.derive(n, colluders=c)
        assert given_c.dropouts == n - given_c.threshold
    if 2 * d < n:
        given_d = MaskingParameters.derive(n, dropouts=d)
        assert given_d.dropouts == d
        assert given_d.colluders == min(n - 2 * d - 1, n - 2)


def test_above_fifty_sites_a_tenth_may_collude_and_the_graph_is_sparse():
    found = MaskingParameters.derive(200)
    assert (found.colluders, found.dropouts, found.complete) == (20, 60, False)


def test_people_are_told_who_would_have_to_collude():
    masked, shared = study_of(4), study_of(4, "shared-key")
    for text in (read_this(masked, 4), together(masked), dict(describe(masked))["Together"]):
        assert "needs the help of more than 1 of the 4 sites" in text
        assert "SERVER AND ONE SITE" not in text
    assert "Fewest honest sites in any sum that is opened: 2" in read_this(masked, 4)
    assert "Server and 2 sites together may read" in dict(describe(masked))["Not protected"]
    for text in (read_this(shared, 4), together(shared), dict(describe(shared))["Not protected"]):
        assert "one site together can read every site's updates" in text.lower()
    assert "no site may vanish" in read_this(masked, 3)
    assert "tells each of them the other's update" in read_this(study_of(2, "masked"), 2)


def test_a_rosters_quorum_is_at_least_its_masks_threshold():
    for n in (3, 4, 7, 10):
        assert least_quorum(study_of(10), n) == MaskingParameters.derive(n).threshold
        assert least_quorum(study_of(10, "shared-key"), n) == n // 2 + 1
