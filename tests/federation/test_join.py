"""A person decides at the site; nothing else can bind it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile

import pytest
import yaml
from typer.testing import CliRunner

from secure_triplay.cli import app
from secure_triplay.config import parse_study
from secure_triplay.constants import protects_less
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError, ProtocolError, RunError
from secure_triplay.federation import bundle as app_bundle
from secure_triplay.federation import join
from secure_triplay.federation.approval import AppApproval, require_trust_file
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.studybundle import Rules, SitePaths, StudyBundle
from secure_triplay.ledger.entries import Decided
from secure_triplay.ledger.ledger import Ledger

from .conftest import NAMES, World, make_site, policy_content, study_content


def resigned(world, **changes) -> bytes:
    """The bundle that a coordinator would sign with something else in it."""
    fields = world.server.bundle.model_dump(mode="python") | changes
    return StudyBundle.model_construct(**fields).signed(world.server.signer)


def test_the_code_covers_everything_that_sites_agree_on(world):
    before = world.server.bundle
    for change in (
        {"server": "10.0.0.1:8443"},
        {"ca_certificate": before.ca_certificate + "\n"},
        {"rules": Rules(quorum=3, deadline_s=60.0)},
        {"epoch": 2, "founding": "ab" * 32},
        {"enrolments": before.enrolments[::-1]},
        {"app": base64.b64encode(b"other").decode()},
        {"basis": base64.b64encode(b"other").decode()},
        {"ed25519": world.sites["north"].enrolment.ed25519},
    ):
        fields = before.model_dump(mode="python") | change
        assert StudyBundle.model_construct(**fields).code != before.code, change


def test_two_sites_that_were_given_two_rosters_read_two_codes(world, tmp_path):
    sham = make_site(tmp_path, "sham-south").enrolment
    other = ServerFolder.create(
        tmp_path / "other",
        world.folder / "study.yaml",
        [world.sites["north"].enrolment_file, world.sites["east"].enrolment_file],
        server="127.0.0.1:8443",
    )
    assert sham.fingerprint not in [one.fingerprint for one in other.bundle.members.values()]
    asked = world.look("north", other.public_bundle)
    with pytest.raises(CryptoError, match="another bundle"):
        join.confirm(world.sites["north"], asked, code=world.server.bundle.code, approved_by="Dr. north")
    assert not (world.sites["north"].path / "studies" / "demo").exists()


def test_without_the_code_nothing_is_approved_and_nothing_written(world):
    asked = world.look("north")
    for code in ("", "AAAA-BBBB-CCCC-DDDD-EEEE", asked.bundle.code[:-1]):
        with pytest.raises(CryptoError, match="not the code"):
            join.confirm(world.sites["north"], asked, code=code, approved_by="Dr. north")
    with Ledger.open(world.sites["north"].ledger, None) as ledger:
        assert not ledger.books.approvals
    assert not list((world.sites["north"].path / "studies").iterdir())


def test_a_code_may_be_typed_as_it_was_heard(world):
    world.server.bundle.require_code(world.server.bundle.code.lower().replace("-", " "))


def test_a_confirmed_study_stands_in_the_ledger_with_the_persons_name(world):
    world.join("north")
    with Ledger.open(world.sites["north"].ledger, None) as ledger:
        ((_, approved),) = ledger.books.approvals.values()
        assert (approved.name, approved.approved_by) == ("demo", "Dr. north")
        (decided,) = [entry.body for entry in ledger.chain.entries if isinstance(entry.body, Decided)]
        assert world.server.bundle.code in decided.what
        assert world.server.bundle.app_sha256[:16] in decided.what
    joined = JoinedStudy.open(world.sites["north"])
    assert joined.study.sha256 == world.server.bundle.study_sha256


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        ("epsilon_per_study", 3.0, "epsilon 8"),
        ("fewest_participants", 4, "updates of 3 sites"),
        ("fewest_participants", 3, "updates of 2 sites"),  # the quorum: the smallest sum that could be opened
        ("allowed_licences", ["MIT"], "licence Apache-2.0"),
        ("smallest_privacy_unit", "patient", "protects each record"),
    ],
)
def test_the_sites_own_policy_binds_whatever_the_coordinator_signed(world, rule, value, words):
    policy = policy_content() | {rule: value}
    if rule == "fewest_participants":
        policy["allow_two_site_studies"] = False
    site = world.sites["north"]
    site.policy_file.write_text(yaml.safe_dump(policy))
    asked = world.look("north")
    assert any(words in str(refusal) for refusal in asked.refusals)
    with pytest.raises(PrivacyError, match="policy refuses"):
        join.confirm(site, asked, code=asked.bundle.code, approved_by="Dr. north")


@pytest.mark.parametrize("a_year", [9.0, 900.0])
def test_who_joins_puts_the_policy_as_it_stands_in_force_in_the_ledger(world, a_year):
    site = world.sites["north"]
    site.policy_file.write_text(
        yaml.safe_dump(policy_content() | {"epsilon_per_study": 8.5, "epsilon_per_year": a_year})
    )
    world.join("north")
    with Ledger.open(site.ledger, None) as ledger:
        assert (ledger.books.limits.epsilon_per_study, ledger.books.limits.epsilon_per_year) == (8.5, a_year)
        assert ledger.books.policies[-1][1].approved_by == "Dr. north"


@pytest.mark.parametrize(
    "edit", [{"epsilon_per_year": 900.0}, {"epsilon_per_study": 3.0}, {"may_export": []}]
)
def test_a_policy_that_was_edited_since_it_was_shown_is_not_put_in_force(world, edit):
    site = world.sites["north"]
    asked = world.look("north")
    site.policy_file.write_text(yaml.safe_dump(policy_content() | edit))
    with pytest.raises(PrivacyError, match="edited since it was shown") as refused:
        join.confirm(site, asked, code=asked.bundle.code, approved_by="Dr. north")
    assert "look again" in refused.value.fix
    with Ledger.open(site.ledger, None) as ledger:
        assert len(ledger.books.policies) == 1
        assert not ledger.books.approvals
    assert not list((site.path / "studies").iterdir())


def test_what_is_put_in_force_is_what_was_shown_byte_for_byte(world, monkeypatch):
    """An edit after the last look at the file does not come in either."""
    site = world.sites["north"]
    site.policy_file.write_text(yaml.safe_dump(policy_content() | {"epsilon_per_study": 8.5}))
    shown, adopt = site.policy_file.read_bytes(), join.adopt

    def edited_first(*given, **named):
        site.policy_file.write_text(yaml.safe_dump(policy_content() | {"epsilon_per_study": 90.0}))
        return adopt(*given, **named)

    monkeypatch.setattr(join, "adopt", edited_first)
    world.join("north")
    with Ledger.open(site.ledger, None) as ledger:
        assert ledger.books.limits.epsilon_per_study == 8.5
        assert ledger.books.policies[-1][1].source_sha256 == hashlib.sha256(shown).hexdigest()


def test_who_joins_is_told_first_which_limits_that_puts_in_force(world):
    site = world.sites["north"]
    asked = ["site", "join", str(world.server.public_bundle), "--site", str(site.path)]
    before = CliRunner().invoke(app, asked)
    assert before.exit_code == 2
    assert "in force" not in before.output
    edited = policy_content() | {"epsilon_per_study": 8.5, "epsilon_per_year": 900.0}
    site.policy_file.write_text(yaml.safe_dump(edited))
    shown = " ".join(CliRunner().invoke(app, asked).output.split())
    assert "puts epsilon 8.5 a study and 900 a year in force" in shown
    with Ledger.open(site.ledger, None) as ledger:
        assert ledger.books.limits.epsilon_per_year != 900.0  # nothing was agreed yet


def test_a_site_that_is_not_on_the_roster_cannot_join(world, tmp_path):
    stranger = make_site(tmp_path, "stranger")
    with pytest.raises(CryptoError, match="not on this study's roster"):
        join.look(stranger, world.server.public_bundle, SitePaths())


def test_a_roster_with_other_keys_under_this_sites_name_is_refused(world, tmp_path):
    (tmp_path / "again").mkdir()
    impostor = make_site(tmp_path / "again", "north")
    with pytest.raises(CryptoError, match="with the keys of this folder"):
        join.look(impostor, world.server.public_bundle, SitePaths())


def test_an_app_with_one_more_file_is_refused_before_anything_is_shown(world, tmp_path):
    content = io.BytesIO(world.server.bundle.app_bytes)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("triplay_app/more.py", "print('hello')")
    file = tmp_path / "evil.bundle"
    file.write_bytes(resigned(world, app=base64.b64encode(content.getvalue()).decode()))
    with pytest.raises(RunError, match="app bundle is not the one"):
        world.look("north", file)


@pytest.mark.parametrize("app", [b"", b"PK", bytes(100)])
def test_an_app_that_is_no_bundle_is_refused(world, tmp_path, app):
    file = tmp_path / "evil.bundle"
    file.write_bytes(resigned(world, app=base64.b64encode(app).decode()))
    with pytest.raises(RunError, match="app bundle is not the one"):
        world.look("north", file)


def test_a_site_with_another_package_is_told_so(world, monkeypatch):
    monkeypatch.setattr(join, "package_sha256", lambda: "00" * 32)
    with pytest.raises(RunError, match="install the very package"):
        world.look("north")


def test_the_app_is_the_same_for_every_study_and_every_machine():
    assert app_bundle.build_app() == app_bundle.build_app()
    app_bundle.require_own_app(app_bundle.build_app())


def test_a_bundle_that_was_changed_after_signing_is_refused(world, tmp_path):
    content = json.loads(world.server.public_bundle.read_text())
    content["study bundle"]["rules"]["quorum"] = 3
    file = tmp_path / "changed.bundle"
    file.write_text(json.dumps(content))
    with pytest.raises(CryptoError, match="does not verify"):
        world.look("north", file)


@pytest.mark.parametrize("quorum", [1, 4])
def test_a_quorum_of_half_the_roster_or_of_more_than_all_makes_no_bundle(world, quorum):
    with pytest.raises(ConfigError, match="quorum"):
        world.rebuilt(rules=Rules(quorum=quorum, deadline_s=60.0))


def test_a_confirmation_counts_for_one_bundle_only(world):
    file = world.join("north")
    assert world.server.take_confirmation(file).site == "north"
    world.server.next_epoch(remove=["south"])
    with pytest.raises(CryptoError, match="another bundle"):
        world.server.take_confirmation(file)


def test_a_confirmation_by_another_site_in_this_ones_name_is_refused(world):
    content = json.loads(world.join("north").read_text())
    content["confirmation"]["site"] = "east"
    file = world.folder / "x.joined"
    file.write_text(json.dumps(content))
    with pytest.raises(CryptoError):
        world.server.take_confirmation(file)


def test_an_approval_is_for_one_bundle_and_by_one_site(world):
    north, south = world.sites["north"], world.sites["south"]
    app = world.server.bundle.app_bytes
    approval = AppApproval.sign(north.approval_key, app)
    approval.verify(north.enrolment.approval_key, app)
    with pytest.raises(CryptoError, match="not for this app"):
        approval.verify(north.enrolment.approval_key, app + b"\0")
    with pytest.raises(CryptoError, match="not for this app"):
        approval.verify(south.enrolment.approval_key, app)


@pytest.mark.parametrize("content", ["", "{}", "[]", "fpk_x: ssh-ed25519 AAAA"])
def test_an_empty_or_foreign_trust_file_is_refused(world, content):
    world.join("north")
    trust = world.joined("north").folder / join.TRUST
    line = world.sites["north"].enrolment.approval_key
    require_trust_file(trust, line)
    trust.write_text(content)
    with pytest.raises(CryptoError, match="only that"):
        require_trust_file(trust, line)


def test_a_later_epoch_needs_a_person_where_somebody_is_new(world):
    for name in world.sites:
        world.join(name)
    site, joined = world.sites["north"], world.joined("north")
    smaller = world.server.next_epoch(remove=["south"])
    raw = world.server.public_bundle.read_bytes()
    after = join.succeed(site, joined, smaller, raw)
    assert list(after.bundle.members) == ["north", "east"]
    assert list(world.joined("north").bundle.members) == ["north", "east"]
    again = world.server.next_epoch(add=[world.sites["south"].enrolment_file])
    with pytest.raises(ProtocolError, match="somebody or something new"):
        join.succeed(site, after, again, world.server.public_bundle.read_bytes())
    asked = world.look("north")
    join.confirm(site, asked, code=asked.bundle.code, approved_by="Dr. north")
    assert list(world.joined("north").bundle.members) == ["north", "east"]  # until the server goes on to it
    join.succeed(site, after, again, world.server.public_bundle.read_bytes())
    assert list(world.joined("north").bundle.members) == ["north", "east", "south"]


def test_a_roster_whose_masks_protect_less_needs_a_person_though_nobody_is_new(tmp_path):
    """The server with one of three sites sees nothing; of the two that a coordinator leaves it would see either."""
    sites = {name: make_site(tmp_path, name) for name in NAMES}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(study_content() | {"aggregation": "masked"}))
    enrolments = [site.enrolment_file for site in sites.values()]
    server = ServerFolder.create(tmp_path / "coordinator", study, enrolments, server="127.0.0.1:8443")
    world = World(tmp_path, sites, server)
    world.join("north")
    site, joined = sites["north"], world.joined("north")
    ran = CliRunner().invoke(app, ["study", "remove", "south", "--dir", str(server.path)])
    assert ran.exit_code == 0, ran.output
    assert "with 0 sites instead of 1: people at every site have to decide" in " ".join(ran.output.split())
    smaller, raw = server.bundle, server.public_bundle.read_bytes()
    with pytest.raises(ProtocolError, match="with 0 sites instead of 1") as refused:
        join.succeed(site, joined, smaller, raw)
    assert "site join" in refused.value.fix
    assert list(world.joined("north").bundle.members) == ["north", "east", "south"]
    world.join("north")
    assert list(join.succeed(site, joined, smaller, raw).bundle.members) == ["north", "east"]


@pytest.mark.parametrize(
    ("before", "after", "stated", "words"),
    [
        (10, 3, {}, "with 1 site instead of 3"),
        (14, 5, {}, "with 2 sites instead of 5"),
        (10, 6, {}, "at least 2 honest sites instead of 4"),
        (4, 3, {}, None),
        (10, 10, {}, None),
        (10, 12, {}, None),
        (10, 8, {"colluders": 3, "dropouts": 1}, "at least 3 honest sites instead of 4"),
        (10, 2, {"kind": "shared-key"}, None),  # there was nothing to give up
    ],
)
def test_what_a_smaller_roster_gives_up_is_said(before, after, stated, words):
    content = study_content(tuple(f"site-{i:02d}" for i in range(before)))
    study = parse_study(content | {"aggregation": {"kind": "masked"} | stated})
    less = protects_less(study, before, after)
    assert (less is None) if words is None else words in str(less)


def test_no_later_epoch_takes_a_site_back_to_an_earlier_roster(world):
    world.join("north")
    site, first = world.sites["north"], world.server.public_bundle.read_bytes()
    second = world.server.next_epoch()
    after = join.succeed(site, world.joined("north"), second, world.server.public_bundle.read_bytes())
    with pytest.raises(ProtocolError, match="later epoch"):
        join.succeed(site, after, StudyBundle.read(first, where="x"), first)


def test_a_study_that_was_made_again_is_refused_before_a_code_is_compared_and_says_how_to_go_on(
    world, tmp_path
):
    """To ask for the newest bundle, as was said, brings the same one again."""
    world.join("north")
    file = tmp_path / "again.bundle"
    file.write_bytes(resigned(world, server="10.0.0.1:8443"))
    with pytest.raises(ProtocolError, match="another study of this name") as refused:
        world.look("north", file)
    assert "move its folder away" in refused.value.fix
    joined = world.joined("north").folder
    joined.rename(joined.parent.parent / "first")
    asked = world.look("north", file)
    join.confirm(world.sites["north"], asked, code=asked.bundle.code, approved_by="Dr. north")
    assert world.joined("north").bundle.server == "10.0.0.1:8443"


def test_the_adapters_seed_outlives_epochs_and_differs_by_study(world):
    first = world.server.bundle
    assert world.server.next_epoch(remove=["south"]).adapter_seed == first.adapter_seed
    other = first.model_copy(update={"server": "10.0.0.1:1"})
    other.__dict__.pop("sha256", None)
    assert other.adapter_seed != first.adapter_seed
