"""What lies on the server's disk is read back, or an error in words."""

from __future__ import annotations

import pytest

from secure_triplay.errors import RunError
from secure_triplay.server.archive import Archive
from secure_triplay.server.round import Round


@pytest.fixture
def archive(federation, tmp_path):
    """An archive with one closed round."""
    current = Round.open(federation.plan, 1, 4)
    for name in federation.names:
        current, _ = current.offer(federation.upload(name).to_bytes())
    made = Archive(tmp_path, federation.plan)
    made.save_sum(current.close("train"))
    made.save_approvals(1, ())
    return made


def test_what_was_saved_is_read_back(archive):
    assert archive.closed(1).total == archive.total(1)
    assert (archive.last, archive.last_signed) == (1, 1)
    assert archive.mask_seeds(1) == archive.mask_keys(1) == archive.mask_members(1) == ()


@pytest.mark.parametrize("content", [b"", b"\x90", b"\x91\x91\x01", b"\x91\x92\xa1a\xc4\x01b", bytes(100)])
@pytest.mark.parametrize("what", ["sum", "approvals", "seeds", "mask-keys", "mask-members"])
def test_a_damaged_file_is_named_and_is_no_message_that_was_refused(archive, tmp_path, what, content):
    (tmp_path / f"000001.{what}").write_bytes(content)
    read = {
        "sum": archive.total,
        "approvals": archive.closed,
        "seeds": archive.mask_seeds,
        "mask-keys": archive.mask_keys,
        "mask-members": archive.mask_members,
    }[what]
    if content == b"\x90" and what != "sum":
        return  # an empty list
    with pytest.raises(RunError, match=f"the {what} of round 1 cannot be read") as error:
        read(1)
    assert error.value.where == str(tmp_path / f"000001.{what}")


def test_a_sum_of_another_plan_is_no_message_that_was_refused(archive, make_federation, tmp_path):
    with pytest.raises(RunError, match="of another study or epoch"):
        Archive(tmp_path, make_federation(4).plan).total(1)
