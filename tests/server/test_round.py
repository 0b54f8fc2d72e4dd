import pytest

from secure_triplay.errors import ConfigError, RunError
from secure_triplay.server.inbox import Reason
from secure_triplay.server.round import Round


def offered(current, *contents):
    """The round after all contents, and the reasons of the refused ones."""
    reasons = []
    for content in contents:
        current, refusal = current.offer(content)
        reasons.append(refusal and refusal.reason)
    return current, reasons


def test_round_sums_whoever_delivered(federation):
    uploads = [federation.upload(name).to_bytes() for name in federation.names]
    current, reasons = offered(Round.open(federation.plan, 1, quorum=4), *uploads)
    assert reasons == [None] * 4
    message = current.close("finish")
    assert message.verify(federation.plan, 1, fewest=4) is None
    assert message.last


def test_refused_bytes_change_nothing_and_the_others_go_on(federation):
    good = [federation.upload(name).to_bytes() for name in federation.names[:3]]
    bad = [b"", bytes(1000), good[0], federation.upload("site-0003", 2).to_bytes(), good[1][:-1]]
    clean, _ = offered(Round.open(federation.plan, 1, quorum=3), *good)
    expected = clean.close("train").to_bytes()
    disturbed, reasons = offered(
        Round.open(federation.plan, 1, quorum=3), good[0], *bad, good[1], bad[0], good[2]
    )
    assert reasons == [
        None,
        Reason.NOT_A_MESSAGE,
        Reason.NOT_A_MESSAGE,
        Reason.DUPLICATE,
        Reason.WRONG_ROUND,
        Reason.NOT_A_MESSAGE,
        None,
        Reason.NOT_A_MESSAGE,
        None,
    ]
    assert disturbed.close("train").to_bytes() == expected


def test_round_below_its_quorum_fails_and_gives_no_sum(federation):
    uploads = [federation.upload(name).to_bytes() for name in federation.names[:2]]
    current, _ = offered(
        Round.open(federation.plan, 1, quorum=3), *uploads, uploads[0], Reason.DECLINED.value.encode()
    )
    with pytest.raises(RunError, match="2 uploads are valid, 3 are needed"):
        current.close("train")


def test_forged_uploads_count_for_no_quorum(federation):
    forged = [federation.upload("site-0000", 9).to_bytes()] * 4
    current, _ = offered(Round.open(federation.plan, 1, quorum=1), *forged)
    with pytest.raises(RunError):
        current.close("train")


@pytest.mark.parametrize("quorum", [0, -1, 5])
def test_quorum_that_cannot_be_met_is_refused(federation, quorum):
    with pytest.raises(ConfigError):
        Round.open(federation.plan, 1, quorum)
