"""Every committed bad input is refused for the reason that stands beside it, and the others' round is not lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_triplay.server.inbox import Inbox, Reason, Refusal, VerifiedUpload
from secure_triplay.server.service import Events, Service
from secure_triplay.wire import SessionPlan

FOLDER = Path(__file__).parent / "bad_inputs"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
PLAN = SessionPlan.from_bytes((FOLDER / "plan.bin").read_bytes())
GOOD = (FOLDER / "good.bin").read_bytes()


def content_of(name: str) -> bytes:
    return GOOD if name == "duplicate" else (FOLDER / f"{name}.bin").read_bytes()


def test_the_good_one_is_accepted():
    assert isinstance(Inbox(PLAN, 2).receive(GOOD), VerifiedUpload)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_bad_input_is_refused_for_its_reason(name):
    inbox = Inbox(PLAN, 2, frozenset({"east"} if name == "duplicate" else ()))
    refusal = inbox.receive(content_of(name))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason(EXPECTED[name])


def test_chunks_in_another_order_are_refused_and_the_others_round_is_not_lost():
    plan = SessionPlan.from_bytes((FOLDER / "two-chunks-plan.bin").read_bytes())
    good, reordered = ((FOLDER / f"two-chunks-{name}.bin").read_bytes() for name in ("good", "reordered"))
    assert (plan.n_chunks, sorted(good)) == (2, sorted(reordered))
    inbox = Inbox(plan, 2)
    assert inbox.receive(reordered) == Refusal(Reason.BAD_DIGEST, "east")
    assert isinstance(inbox.receive(good), VerifiedUpload)


def test_no_file_is_left_out_and_nearly_every_reason_has_one():
    found = {path.stem for path in FOLDER.glob("*.bin") if not path.stem.startswith("two-chunks")} - {
        "plan",
        "good",
    }
    assert found | {"duplicate"} == set(EXPECTED)
    # What needs another setting than bytes: a size that no file has room for, and a server without a round.
    assert {reason.value for reason in Reason} - set(EXPECTED.values()) == {"wrong-size", "no-open-round"}


def test_a_round_takes_the_good_one_after_all_the_bad_ones_and_counts_each():
    service = Service(PLAN, 2, Events(None, False))
    service.open(2)
    for name in sorted(EXPECTED):
        if name != "duplicate":
            content = content_of(name)
            assert service.offer([content], len(content)) is not None
    assert service.offer([GOOD], len(GOOD)) is None
    assert service.offer([GOOD], len(GOOD)).reason is Reason.DUPLICATE
    stats = service.stats()
    assert stats.accepted == 1
    assert sum(stats.refused.values()) == len(EXPECTED)
