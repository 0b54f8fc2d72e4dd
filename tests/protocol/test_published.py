"""The count round: one noised pair a site, inside the encrypted sum, with a charge of its own, changing no adapter."""

from __future__ import annotations

import numpy as np
import pytest
from federation_driver import STUDY, Federation, closing

from secure_triplay.client.published import Published
from secure_triplay.ledger.compare import compare
from secure_triplay.ledger.entries import Reserved, Settled
from secure_triplay.ledger.export import export
from secure_triplay.ledger.study import PUBLISHED
from secure_triplay.ledger.verify import verify
from secure_triplay.privacy.counts import CountRule
from secure_triplay.privacy.noise import NoiseSource

COUNTS = {0: (31, 40), 1: (10, 90), 2: (0, 0), 3: (7, 7)}
NEXT_TO_NO_NOISE = CountRule(noise_multiplier=1e-3, records_per_unit=1, most_units=100, unit="record")


def counting(index: int) -> Published:
    return Published(NEXT_TO_NO_NOISE, lambda adapter: COUNTS[index], NoiseSource())


@pytest.fixture
def finished(tmp_path):
    with closing(Federation(tmp_path, 4, rounds=2, counted=counting)) as made:
        made.run()
        yield made


def test_every_site_learns_the_sum_of_all_counts_and_of_nothing_else(finished):
    right, records = np.sum(list(COUNTS.values()), axis=0)
    # Four sites, each rounded by half a step of the codec at most, and noise of a thousandth of a record.
    tolerance = 4 * NEXT_TO_NO_NOISE.largest / (2**12 - 1) + 0.05
    for site in finished.sites.values():
        (said,) = [fields for event, fields in site.notes if event == "published"]
        assert said["correct"] == pytest.approx(right, abs=tolerance)
        assert said["total"] == pytest.approx(records, abs=tolerance)


def test_the_count_round_trains_nothing_and_changes_no_adapter(finished):
    trained = finished.oracle_until(2)
    for index, state in finished.states().items():
        assert state.round == 3
        assert np.array_equal(state.adapter, trained.adapter)
        assert finished.sites[index].trained == [1, 2]


def test_counts_have_a_charge_of_their_own_settled_before_they_leave(finished):
    for site in finished.sites.values():
        entries = site.ledger.chain.entries
        (made,) = [
            e
            for e in entries
            if isinstance(e.body, Reserved) and (e.body.study, e.body.what) == (STUDY, PUBLISHED)
        ]
        assert any(isinstance(e.body, Settled) and e.body.reservation == made.counter for e in entries)


def test_logs_of_all_sites_agree_that_the_count_round_was_paid_for(finished, tmp_path):
    bundles = []
    for site in finished.sites.values():
        out = tmp_path / "evidence" / site.name
        export(site.folder / "ledger", out, site.identity, second_accountant=False)
        bundles.append(verify(out))
    assert compare(bundles) == ()


def test_an_upload_of_counts_looks_like_any_other(tmp_path):
    sizes: dict[int, set[int]] = {}
    with closing(Federation(tmp_path, 4, rounds=2, counted=counting)) as federation:

        def wire(direction, node, content):
            if direction == "up":
                sizes.setdefault(federation.server.exchange.round, set()).add(len(content) // 1024)
            return [content]

        federation.run(wire)
    assert max(sizes[3]) == max(sizes[2])
