"""Bundles of one site are one chain at different lengths, and a name has one key."""

from __future__ import annotations

import shutil

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.ledger.compare import compare
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.verify import verify
from tests.ledger.conftest import CHARGE, STUDY


@pytest.fixture
def bundle_of(tmp_path, identity, clock):
    """The verified bundle of a ledger's folder."""
    made = iter(range(99))

    def build(folder, signer=identity):
        out = tmp_path / f"bundle-{next(made)}"
        export(folder, out, signer, second_accountant=False, clock=clock)
        return verify(out)

    return build


def spend(folder, identity, clock, round):
    with Ledger.open(folder, identity, clock=clock) as ledger:
        ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=round), b"%d" % round)


def test_an_earlier_and_a_later_bundle_of_a_site_agree(ledger, folder, identity, clock, bundle_of):
    ledger.close()
    early = bundle_of(folder)
    spend(folder, identity, clock, 1)
    assert compare([bundle_of(folder), early]) == ()


def test_a_restored_copy_that_went_on_is_seen(ledger, folder, tmp_path, identity, clock, bundle_of):
    ledger.close()
    shutil.copytree(folder, tmp_path / "clone")
    spend(folder, identity, clock, 1)
    spend(tmp_path / "clone", identity, clock, 2)
    (found,) = compare([bundle_of(folder), bundle_of(tmp_path / "clone")])
    assert "copied or rewritten" in found.what


def test_two_keys_under_one_name_are_seen(make, bundle_of, tmp_path):
    other = SigningIdentity.generate()
    with make("site") as first:
        one = first.chain.path.parent
    with make("elsewhere/site", signer=other) as second:
        two = second.chain.path.parent
    a, b = bundle_of(one), bundle_of(two, other)
    b = type(b)(**{**vars(b), "site": a.site})
    assert "two keys sign as" in compare([a, b])[0].what


def test_one_key_with_two_ledgers_under_two_names_is_seen(make, bundle_of):
    with make("site") as first, make("site-2") as second:
        folders = first.chain.path.parent, second.chain.path.parent
    assert "signs as site and as site-2" in compare([bundle_of(folder) for folder in folders])[0].what
