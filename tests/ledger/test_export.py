"""A bundle says what the ledger's charges give, and any other bundle is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil

import pytest

from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError, RunError, SecureTriplayError
from secure_triplay.ledger import evidence as evidence_module
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.entries import Entry, Opened, PolicyAdopted, Reserved, canonical
from secure_triplay.ledger.export import CSV_NAME, JSON_NAME, PAGE_NAME, export, page
from secure_triplay.ledger.ledger import TRAINING, Ledger, Release
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.verify import read_fingerprint, verify
from secure_triplay.privacy import accounting
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge
from tests.ledger.witnessing import Member

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
COUNTS = GaussianCharge(noise_multiplier=20.0, unit="patient")
STUDY, OTHER = "a" * 64, "b" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")


@pytest.fixture
def spent(ledger):
    """A ledger with two studies, a release without settlement, and a refusal."""
    ledger.approve(
        OTHER,
        "=cmd()",
        [Release(TRAINING, CHARGE, 3), Release("class counts", COUNTS, 1)],
        approved_by="Dr. Officer",
    )
    for number in (1, 2, 3):
        ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=number), b"upload %d" % number)
    ledger.reserve(CHARGE, study=OTHER, round=1)
    ledger.settle(ledger.reserve(COUNTS, study=OTHER, round=1, what="class counts"), b"counts")
    return ledger


@pytest.fixture
def bundle(spent, folder, tmp_path, identity, clock):
    return export(folder, tmp_path / "bundle", identity, second_accountant=False, clock=clock)


def read(bundle):
    return json.loads((bundle / JSON_NAME).read_text())


def resigned(bundle, identity, change):
    """What the owner of the key can do: change anything, make the other files fit, and sign again."""
    from hashlib import sha256

    signed = read(bundle)
    change(signed["evidence"])
    texts = {CSV_NAME: (bundle / CSV_NAME).read_text(), PAGE_NAME: (bundle / PAGE_NAME).read_text()}
    signed["files"] = {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}
    content = {"evidence": signed["evidence"], "files": signed["files"]}
    signature = identity.sign(Purpose.EVIDENCE, canonical(content)).hex()
    (bundle / JSON_NAME).write_text(json.dumps({**content, "signature": signature}))


def test_an_honest_bundle_verifies_by_itself(bundle, identity):
    verified = verify(bundle)
    assert verified.charges == 5
    assert verified.site == "site"
    assert "rollback not excluded" in verified.rollback
    assert any(identity.identity.fingerprint in note for note in verified.notes)
    (note,) = verify(bundle, signed_as=frozenset({identity.identity.fingerprint})).notes
    assert "was compared with the fingerprint given" in note


def test_figures_of_a_bundle_are_those_of_the_charges(bundle):
    figures = {(row["kind"], row["key"]): row for row in read(bundle)["evidence"]["figures"]}
    first, second, year = figures["study", STUDY], figures["study", OTHER], figures["year", "2026"]
    assert first["epsilon_charged"] == first["epsilon_spent"] == accounting.epsilon([CHARGE] * 3, 1e-6)
    assert second["epsilon_charged"] == accounting.epsilon([CHARGE, COUNTS], 1e-6)
    assert second["epsilon_spent"] == accounting.epsilon([COUNTS], 1e-6)
    assert second["epsilon_reserved"] > 0
    assert year["epsilon_pld"] == accounting.epsilon([CHARGE] * 4 + [COUNTS], 1e-6)
    assert year["adaptive"]
    assert year["epsilon_charged"] == year["epsilon_filter"] > year["epsilon_pld"]
    assert year["epsilon_left"] == 6.0 - year["epsilon_charged"]


def test_a_third_accountant_can_start_from_the_table(bundle):
    """Epsilon again, from the table's columns alone, by the Gaussian mechanism's Renyi divergence (Mironov
    2017).
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant()
    for row in csv.DictReader((bundle / CSV_NAME).open()):
        event = GaussianDpEvent(float(row["noise_multiplier"]))
        if row["sampling_rate"]:
            event = PoissonSampledDpEvent(float(row["sampling_rate"]), event)
        accountant.compose(SelfComposedDpEvent(event, int(row["steps_or_releases"])))
    stated = next(row for row in read(bundle)["evidence"]["figures"] if row["kind"] == "overall")
    assert math.isclose(accountant.get_epsilon(1e-6), stated["epsilon_pld"], rel_tol=0.002)


def test_both_accountants_stand_in_the_export_and_are_recomputed(spent, folder, tmp_path, identity, clock):
    bundle = export(folder, tmp_path / "both", identity, clock=clock)
    for row in verify(bundle).figures:
        assert row["epsilon_prv"] == pytest.approx(row["epsilon_pld"], rel=0.01, abs=0.01)

    def lie(evidence):
        evidence["figures"][0]["epsilon_prv"] *= 0.5

    resigned(bundle, identity, lie)
    with pytest.raises(PrivacyError, match="epsilon_prv"):
        verify(bundle)


@pytest.mark.parametrize("name", [JSON_NAME, CSV_NAME, PAGE_NAME])
def test_any_changed_byte_is_found(bundle, name):
    path = bundle / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 23)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            verify(bundle)
        except SecureTriplayError:
            continue
        # Only white space between JSON tokens says nothing, so only there a change may pass.
        assert name == JSON_NAME
        assert json.loads(changed) == json.loads(content)


def test_a_figure_slipped_in_beside_the_signed_one_is_refused(bundle):
    path = bundle / JSON_NAME
    signed = '"epsilon_charged": '
    path.write_text(path.read_text().replace(signed, f"{signed}0.01, {signed}", 1))
    with pytest.raises(RunError, match="stands twice"):
        verify(bundle)


@pytest.mark.parametrize("name", [JSON_NAME, CSV_NAME, PAGE_NAME])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(RunError) as caught:
        verify(bundle)
    assert name in caught.value.where


LIES = {
    "a smaller epsilon": lambda e: e["figures"][0].update(epsilon_charged=0.1),
    "a smaller pld": lambda e: e["figures"][-1].update(epsilon_pld=e["figures"][-1]["epsilon_pld"] * 0.999),
    "a larger limit": lambda e: e["figures"][0].update(limit=100.0),
    "a charge less": lambda e: e["charges"].pop(),
    "more noise": lambda e: e["charges"][0].update(noise_multiplier=9.0),
    "a study fewer": lambda e: e["studies"].pop(),
    "another officer": lambda e: e["policies"][0].update(approved_by="Prof. Else"),
    "another delta": lambda e: e.update(delta=1e-5),
    "nothing uncovered": lambda e: e.update(not_covered=[]),
    "made-up peers": lambda e: e["anchors"].update(peers=["11" * 32], last_counter=3, charges_after=0),
    "a cut chain": lambda e: e["entries"].pop(),
    "a gap": lambda e: e["entries"].pop(4),
    "two exchanged": lambda e: e["entries"].insert(3, e["entries"].pop(4)),
    "another unit": lambda e: e.update(unit="record"),
    "one field more": lambda e: e.update(certified="yes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_owner_who_signs_a_lie_is_refuted_by_the_entries(bundle, identity, lie):
    resigned(bundle, identity, LIES[lie])
    with pytest.raises((PrivacyError, CryptoError)):
        verify(bundle)


@pytest.mark.parametrize("word", ["yes", 1, None])
def test_no_word_of_the_owner_switches_the_check_of_the_second_accountant_off(bundle, identity, word):
    def lie(evidence):
        evidence["second_accountant"] = word
        for row in evidence["figures"]:
            row["epsilon_prv"] = 0.001

    resigned(bundle, identity, lie)
    evidence = read(bundle)["evidence"]
    (bundle / PAGE_NAME).write_text(page(evidence))
    resigned(bundle, identity, lambda evidence: None)
    with pytest.raises(RunError, match="no evidence bundle"):
        verify(bundle)


def test_a_bundle_that_another_version_worded_verifies_by_its_figures_and_says_so(bundle, identity):
    def older(evidence):
        evidence.update(software="0.0.9")
        evidence["not_covered"] = [{"title": "Nothing", "text": "In other words, all is covered."}]

    limits = [
        limit["title"] for limit in json.loads((bundle / JSON_NAME).read_text())["evidence"]["not_covered"]
    ]
    resigned(bundle, identity, older)
    (note,) = [note for note in verify(bundle).notes if "worded by version 0.0.9" in note]
    assert len(limits) > 3
    assert all(
        limit in note for limit in limits
    )  # what such a bundle keeps quiet about is said by the verifier
    resigned(bundle, identity, LIES["a smaller epsilon"])
    with pytest.raises(PrivacyError, match="epsilon_charged"):
        verify(bundle)


def test_an_owner_who_signs_another_table_or_page_is_refuted(bundle, identity):
    for name in (CSV_NAME, PAGE_NAME):
        path = bundle / name
        content = path.read_text()
        path.write_text(content.replace("patient", "record"))
        resigned(bundle, identity, lambda evidence: None)
        with pytest.raises(PrivacyError, match=r"does not say|is not what"):
            verify(bundle)
        path.write_text(content)


def forge(identity, *bodies):
    """A chain that the program would not write, with every signature right."""
    entries = []
    for body in bodies:
        entries.append(Entry.signed(identity, entries[-1] if entries else None, "2026-01-01T00:00:00Z", body))
    return tuple(entries)


def test_a_chain_that_breaks_the_rules_is_refused_though_every_signature_is_right(ledger, identity):
    ledger.reserve(CHARGE, study=STUDY, round=1)
    opened, policy, study, charge = [entry.body for entry in ledger.chain.entries]
    again = charge.model_copy(update={"round": 2})
    good = (opened, policy, study, charge, again)
    evidence_module.statement(forge(identity, *good), identity.identity, second_accountant=False)
    assert (type(opened), type(policy), type(charge)) == (Opened, PolicyAdopted, Reserved)
    for bodies in (
        (*good, charge),  # reserved twice
        (opened, policy, charge),  # no approval
        (*good, charge.model_copy(update={"round": 99})),
        (*good, charge.model_copy(update={"charge": {**charge.charge, "noise_multiplier": 9.0}, "round": 3})),
        (*good, policy.model_copy(update={"unit": "record"})),
        (*good, study),
        (opened, study, charge),
        (opened, policy.model_copy(update={"delta": 0.5}), study),
    ):
        with pytest.raises(PrivacyError):
            evidence_module.statement(forge(identity, *bodies), identity.identity, second_accountant=False)


def test_no_charge_per_record_passes_for_protection_per_patient(ledger, identity):
    ledger.reserve(CHARGE, study=STUDY, round=1)
    opened, policy, study, charge = [entry.body for entry in ledger.chain.entries]
    fields = {**charge.charge, "unit": "record"}
    (release,) = study.releases
    study = study.model_copy(update={"releases": (release.model_copy(update={"charge": fields}),)})
    bodies = (opened, policy, study, charge.model_copy(update={"charge": fields}))
    with pytest.raises(PrivacyError, match="charges per record where the policy protects each patient"):
        evidence_module.statement(forge(identity, *bodies), identity.identity, second_accountant=False)


def test_a_history_beyond_every_policy_is_refused(bundle):
    signed = read(bundle)["evidence"]
    evidence_module.require_bounded(signed)
    signed["figures"][0]["epsilon_charged"] = 3.01
    with pytest.raises(PrivacyError, match="more than any policy"):
        evidence_module.require_bounded(signed)
    signed["figures"][0]["epsilon_charged"] = None
    with pytest.raises(PrivacyError):
        evidence_module.require_bounded(signed)


def test_a_bundle_of_another_key_is_refused(bundle):
    with pytest.raises(CryptoError, match="was expected"):
        verify(bundle, signed_as=frozenset({SigningIdentity.generate().identity.fingerprint}))


@pytest.mark.parametrize(
    "change", [str.upper, lambda text: text.replace(" ", ""), lambda text: f"  {text}\n"]
)
def test_a_fingerprint_is_read_as_a_person_types_it(identity, change):
    assert read_fingerprint(change(identity.identity.fingerprint)) == identity.identity.fingerprint


@pytest.mark.parametrize("text", ["", "abcd", "g" * 32, "a" * 31, "a" * 33, "a" * 64, "ａ" * 32])
def test_what_is_no_fingerprint_gets_a_sentence(text):
    with pytest.raises(ConfigError, match="no fingerprint") as caught:
        read_fingerprint(text)
    assert "eight groups" in caught.value.fix


def test_files_that_are_no_bundle_get_a_sentence(bundle, tmp_path):
    with pytest.raises(RunError):
        verify(tmp_path / "nowhere")
    for content in (
        "",
        "{}",
        "[]",
        "null",
        "[" * 100_000,
        '{"evidence": NaN}',
        '{"evidence": {}, "files": {}, "signature": ""}',
        '{"evidence": {"format": "secure_triplay evidence 1"}, "files": '
        '{"charges.csv": "", "evidence.html": ""}, "signature": "00"}',
    ):
        (bundle / JSON_NAME).write_text(content)
        with pytest.raises(SecureTriplayError) as caught:
            verify(bundle)
        assert caught.value.fix


def test_with_witnesses_the_export_says_up_to_where_rollback_is_excluded(
    spent, folder, tmp_path, identity, clock
):
    signer = SigningIdentity.generate()
    key = signer.identity.public_bytes.hex()
    with AuditLog.create(tmp_path / "peer", signer, party="peer", started_by="B", clock=clock) as log:
        peer = Member(log.chain, signer, [identity.identity], clock)
        Member(spent.chain, identity, [signer.identity], clock).exchange(peer)
    covered = export(folder, tmp_path / "covered", identity, second_accountant=False, clock=clock)
    assert "rollback is excluded if that is the last head" in verify(covered).rollback
    assert read(covered)["evidence"]["anchors"]["peers"] == [key]
    spent.reserve(CHARGE, study=STUDY, round=4)
    later = export(folder, tmp_path / "later", identity, second_accountant=False, clock=clock)
    assert "not excluded for the 1 charges after it" in verify(later).rollback
    assert "Rollback not excluded for the latest charges" in (later / PAGE_NAME).read_text()


def test_the_page_tells_a_lawyer_what_is_guaranteed_and_what_is_not(bundle):
    text = (bundle / PAGE_NAME).read_text()
    for phrase in (
        "differentially private",
        "P[M(D) ∈ S]",
        "adding or removing all data of one patient",
        "Approved by",
        "Dr. Officer",
        "What is not covered",
        "at other sites",
        "Withdrawn consent",
        "Rollback not excluded",
        "By PLD",
        "By PRV",
        "family",
        "class counts",
        "<td>nothing</td>",
        "audit verify",
        "What clocks tell",
        "out of the manifest",
        "nobody counted",
        "a large quantum computer could",
    ):
        assert phrase in text, phrase
    assert "<script" not in text
    assert text.count("http") == text.count("http-equiv")  # nothing is fetched


def test_names_cannot_write_into_the_page_or_the_table(make, tmp_path, clock):
    signer = SigningIdentity.generate()
    with make("x", signer=signer) as ledger:
        ledger.approve(OTHER, "<script>alert(1)</script>", [Release(TRAINING, CHARGE, 1)], approved_by="=1+1")
        ledger.approve("c" * 64, "=HYPERLINK(1)", [Release(TRAINING, CHARGE, 1)], approved_by="A")
        ledger.reserve(CHARGE, study="c" * 64, round=1)
    bundle = export(tmp_path / "x", tmp_path / "out", signer, second_accountant=False, clock=clock)
    assert "<script>" not in (bundle / PAGE_NAME).read_text()
    (row,) = csv.DictReader((bundle / CSV_NAME).open())
    assert row["study_name"] == "'=HYPERLINK(1)"
    verify(bundle)


def test_an_empty_ledger_can_be_exported(make, tmp_path, clock, identity):
    make().close()
    assert (
        verify(
            export(tmp_path / "site", tmp_path / "out", identity, second_accountant=False, clock=clock)
        ).charges
        == 0
    )


def test_a_history_that_bounds_nothing_any_more_can_still_be_exported(make, tmp_path, clock, identity):
    """Figures go up to 1000, and e^709 is more than a float holds."""
    hardly = GaussianCharge(noise_multiplier=0.0282, unit="patient")
    with make(limits=dataclasses.replace(LIMITS, epsilon_per_study=900.0, epsilon_per_year=900.0)) as ledger:
        ledger.approve(OTHER, "loud", [Release("counts", hardly, 1)], approved_by="A")
        ledger.reserve(hardly, study=OTHER, round=1, what="counts")
    bundle = export(tmp_path / "site", tmp_path / "out", identity, second_accountant=False, clock=clock)
    charged = verify(bundle).figures[-1]["epsilon_charged"]
    assert 790 < charged < 810
    assert read(bundle)["evidence"]["membership_ceiling"] == 1.0
    tens = str(math.floor(charged / math.log(10)) + 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    assert f"e<sup>ε</sup> &lt; 10{tens} times its chance" in (bundle / PAGE_NAME).read_text()


def test_an_unprotected_release_stands_on_the_page_in_words(make, tmp_path, clock, identity):
    from secure_triplay.ledger.budget import Unprotected

    with make(limits=dataclasses.replace(LIMITS, unsafe_unlimited=True)) as ledger:
        ledger.approve(OTHER, "open", [Release(TRAINING, Unprotected(), 1)], approved_by="A")
        ledger.reserve(Unprotected(), study=OTHER, round=1)
    bundle = export(tmp_path / "site", tmp_path / "out", identity, second_accountant=False, clock=clock)
    assert "No guarantee: a release was not protected" in (bundle / PAGE_NAME).read_text()
    assert not verify(bundle).figures[-1]["bounded"]


def test_an_export_is_recorded_and_overwrites_nothing(bundle, folder, identity, clock):
    with Ledger.open(folder, None) as ledger:
        assert ledger.chain.entries[-1].kind == "exported"
    before = (bundle / JSON_NAME).read_bytes()
    with pytest.raises(RunError, match="nothing is overwritten"):
        export(folder, bundle, identity, second_accountant=False, clock=clock)
    assert (bundle / JSON_NAME).read_bytes() == before


def test_an_export_for_no_purpose_is_refused_and_leaves_nothing(folder, tmp_path, identity, clock):
    entries = Ledger.open(folder, None).chain.entries
    with pytest.raises(PrivacyError, match="purpose"):
        export(folder, tmp_path / "none", identity, purpose="", second_accountant=False, clock=clock)
    assert Ledger.open(folder, None).chain.entries == entries
    assert not (tmp_path / "none").exists()


def test_a_moved_bundle_still_verifies(bundle, tmp_path):
    shutil.move(bundle, tmp_path / "elsewhere")
    verify(tmp_path / "elsewhere")


def test_the_page_is_the_same_again_from_the_evidence_alone(bundle):
    assert page(read(bundle)["evidence"]) == (bundle / PAGE_NAME).read_text()
