"""The key ceremony over a server that tries everything: swap, drop, replay, invent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secure_triplay.client.keys import make_keys
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.double import DoubleSigner
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.deploy.site.ceremony import DELIVERED, OFFER, RECIPIENT, SEALED, SiteCeremony, end_epoch
from secure_triplay.errors import ProtocolError, RunError, SecureTriplayError
from secure_triplay.federation.ceremony import (
    Deliver,
    MakeKeys,
    Offer,
    Offers,
    Opened,
    Sealed,
    Summon,
)
from secure_triplay.federation.relay import Relay

NAMES = ("north", "east", "south")
STUDY, BUNDLE, KEY = "ab" * 32, bytes(range(32)), bytes(32)
CODEC = Codec.choose(n_sites=3, n_params=100, value_bits=9, limit=1.0)


class FakeBundle:
    """What the relay reads of a bundle."""

    study_sha256, sha256 = STUDY, BUNDLE

    def __init__(self, epoch: int, identities: dict) -> None:
        self.epoch, self.identities = epoch, identities


class Sites:
    """Three sites and a relay, each with its own store."""

    def __init__(self, folder: Path, epoch: int = 1, signers: dict[str, DoubleSigner] | None = None) -> None:
        self.signers = signers or {name: DoubleSigner.generate() for name in NAMES}
        self.members = {name: signer.identity for name, signer in self.signers.items()}
        self.epoch = epoch
        self.folder = folder
        self.relay = Relay(FakeBundle(epoch, self.members), b"the bundle's file")

    def vault(self, name: str) -> Vault:
        return Vault(self.folder / name, KEY, study=STUDY, epoch=self.epoch)

    def site(self, name: str) -> SiteCeremony:
        """The site as a restarted worker makes it: from its vault alone."""
        signer, vault = self.signers[name], self.vault(name)
        return SiteCeremony(STUDY, self.epoch, name, BUNDLE, self.members, CODEC, signer, vault)

    def offers(self) -> Offers:
        for name in NAMES:
            offer = self.site(name).answer(Summon.from_bytes(self.relay.summon))
            self.relay, who = self.relay.take_offer(offer.to_bytes())
            assert who == name
        return MakeKeys.from_bytes(self.relay.make).offers

    def sealed(self) -> Sealed:
        self.offers()
        sealed = self.site("north").answer(MakeKeys.from_bytes(self.relay.make))
        self.relay = self.relay.take_sealed(sealed.to_bytes())
        return sealed

    def delivered(self) -> dict[str, Deliver]:
        self.sealed()
        return {name: Deliver.from_bytes(self.relay.deliver(name)) for name in NAMES}

    def run(self) -> None:
        for name, message in self.delivered().items():
            opened = self.site(name).answer(message)
            self.relay, _ = self.relay.take_opened(opened.to_bytes())


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def key_bytes(sites: Sites, name: str) -> bytes:
    keys, _ = sites.site(name).keys()
    return keys.key_id + keys.ckks.to_envelope_bytes() + keys.tag.to_envelope_bytes()


def test_every_site_ends_with_the_same_key_and_plan(sites):
    sites.run()
    assert sites.relay.opened == set(sites.relay.bundle.identities)
    assert len({key_bytes(sites, name) for name in NAMES}) == 1
    assert {sites.site(name).keys()[1] for name in NAMES} == {sites.relay.plan}


def test_the_server_holds_nothing_that_opens_an_envelope(sites):
    sites.run()
    secret = key_bytes(sites, "north")[32:]
    everything = b"".join(
        [sites.relay.summon, sites.relay.make, sites.relay.sealed.to_bytes()]
        + [sites.relay.deliver(name) for name in NAMES]
    )
    windows = [secret[i : i + 24] for i in range(0, len(secret) - 24, 61)]
    assert len(windows) > 50, len(secret)
    assert not [window for window in windows if window in everything]


def test_the_recipient_key_is_gone_once_the_keys_are_out_of_their_envelope(sites):
    messages = sites.delivered()
    assert all(sites.vault(name).load(RECIPIENT) for name in NAMES)
    for name, message in messages.items():
        sites.site(name).answer(message)
        assert sites.vault(name).load(RECIPIENT) is None


def test_the_same_question_again_gets_the_same_bytes_also_after_a_restart(sites):
    summon = Summon.from_bytes(sites.relay.summon)
    assert sites.site("north").answer(summon) == sites.site("north").answer(summon)
    first = sites.sealed()
    assert sites.site("north").answer(MakeKeys.from_bytes(sites.relay.make)) == first
    message = Deliver.from_bytes(sites.relay.deliver("east"))
    opened = sites.site("east").answer(message)
    again = sites.site("east").answer(message)
    assert (opened.key_id, opened.site) == (again.key_id, again.site)


def test_a_swapped_recipient_key_is_caught_by_relay_maker_and_receiver(sites):
    offers = sites.offers()
    own = EnvelopeKey.generate()
    victim = next(offer for offer in offers.offers if offer.site == "south")
    forged = replace(victim, recipient=own.recipient.public_bytes)
    with pytest.raises(SecureTriplayError):
        Sites(sites.folder, signers=sites.signers).relay.take_offer(forged.to_bytes())
    swapped = Offers(tuple(forged if offer is victim else offer for offer in offers.offers))
    with pytest.raises(SecureTriplayError):
        sites.site("north").answer(MakeKeys(STUDY, 1, swapped))
    assert sites.vault("north").load(SEALED) is None


def test_no_key_is_made_while_one_site_has_not_confirmed(sites):
    offers = sites.offers()
    with pytest.raises(ProtocolError, match="not those of the roster"):
        sites.site("north").answer(MakeKeys(STUDY, 1, Offers(offers.offers[:-1])))
    short = Sites(sites.folder / "short")
    short.relay, _ = short.relay.take_offer(
        short.site("north").answer(Summon.from_bytes(short.relay.summon)).to_bytes()
    )
    with pytest.raises(RunError, match="east, south did not offer"):
        _ = short.relay.make


def test_no_key_is_made_for_a_site_that_confirmed_another_bundle(sites):
    offers = sites.offers()
    other = SiteCeremony(
        STUDY, 1, "south", bytes(32), sites.members, CODEC, sites.signers["south"], sites.vault("other")
    ).answer(Summon.from_bytes(sites.relay.summon))
    mixed = tuple(other if offer.site == "south" else offer for offer in offers.offers)
    with pytest.raises(ProtocolError, match="confirmed another bundle"):
        sites.site("north").answer(MakeKeys(STUDY, 1, Offers(mixed)))


def test_a_sham_site_is_not_sealed_to(sites):
    offers, sham = sites.offers(), DoubleSigner.generate()
    extra = Offer.signed(
        sham,
        study=STUDY,
        epoch=1,
        site="zzz",
        bundle_sha256=BUNDLE,
        recipient=EnvelopeKey.generate().recipient.public_bytes,
    )
    with pytest.raises(ProtocolError, match="not those of the roster"):
        sites.site("north").answer(MakeKeys(STUDY, 1, Offers((*offers.offers, extra))))


def test_an_envelope_meant_for_another_site_is_refused(sites):
    messages = sites.delivered()
    swapped = replace(messages["south"], envelope=messages["east"].envelope)
    with pytest.raises(SecureTriplayError):
        sites.site("south").answer(swapped)
    assert sites.site("south").keys() is None


@pytest.mark.parametrize("at", [0, 64, 700, 5000, -1])
def test_one_changed_bit_in_an_envelope_is_refused(sites, at):
    message = sites.delivered()["south"]
    changed = bytearray(message.envelope)
    changed[at] ^= 1
    with pytest.raises(SecureTriplayError):
        sites.site("south").answer(replace(message, envelope=bytes(changed)))
    assert sites.vault("south").load(DELIVERED) is None


def test_a_key_that_the_server_made_itself_is_refused(sites):
    """It knows every recipient key; what it lacks is a roster site's signature."""
    offers, server = sites.offers(), DoubleSigner.generate()
    honest = sites.site("north")._roster(offers)
    forged_members = {**sites.members, "north": server.identity}
    forged = SiteCeremony(STUDY, 1, "north", BUNDLE, forged_members, CODEC, server, sites.vault("forger"))
    roster = honest.of(
        STUDY,
        1,
        {
            name: (identity.identity.public_bytes, honest.recipients[name].public_bytes)
            for name, identity in forged_members.items()
        },
    )
    name, envelopes = make_keys(CODEC.parameters, roster, "north", server.signer)
    sealed = Sealed.signed(
        server,
        study=STUDY,
        epoch=1,
        maker="north",
        offers=offers,
        key_id=name,
        n_chunks=forged.codec.n_chunks,
        envelopes=envelopes,
    )
    message = Deliver(offers, sealed.head, envelopes["south"])
    with pytest.raises(SecureTriplayError):
        sites.site("south").answer(message)
    with pytest.raises(SecureTriplayError):
        sites.relay.take_sealed(sealed.to_bytes())


def test_a_second_key_in_one_epoch_is_refused(sites):
    sites.run()
    second = Sites(sites.folder / "second", signers=sites.signers)
    for name in NAMES:  # the same offers, and a maker that forgot that it made a key
        second.vault(name).save(OFFER, sites.vault(name).load(OFFER))
    other = second.delivered()["south"]
    assert other.head.key_id != sites.relay.plan.key_id
    with pytest.raises(ProtocolError, match="another key at this site already"):
        sites.site("south").answer(other)


def test_a_recorded_ceremony_of_an_earlier_epoch_is_refused(sites):
    sites.run()
    later = Sites(sites.folder, epoch=2, signers=sites.signers)
    for message in (Deliver.from_bytes(sites.relay.deliver("south")), Summon.from_bytes(sites.relay.summon)):
        with pytest.raises(ProtocolError, match="another study or epoch"):
            later.site("south").answer(message)
    old = next(offer for offer in MakeKeys.from_bytes(sites.relay.make).offers.offers)
    with pytest.raises(SecureTriplayError):
        later.relay.take_offer(old.to_bytes())


def test_after_the_epochs_end_a_thief_of_the_folder_opens_nothing_that_was_recorded(sites):
    sites.run()
    recorded = Deliver.from_bytes(sites.relay.deliver("south"))
    end_epoch(sites.site("south").vault)
    vault = sites.vault("south")
    assert [vault.load(name) for name in (RECIPIENT, OFFER, SEALED, "keys")] == [None] * 4
    assert sites.site("south").keys() is None
    with pytest.raises(SecureTriplayError):
        sites.site("south").answer(recorded)


def test_an_acknowledgement_of_another_key_does_not_count(sites):
    sites.delivered()
    wrong = Opened.signed(sites.signers["south"], study=STUDY, epoch=1, site="south", key_id=bytes(32))
    with pytest.raises(ProtocolError, match="another key"):
        sites.relay.take_opened(wrong.to_bytes())
    assert sites.relay.opened != set(sites.relay.bundle.identities)


def test_cut_and_foreign_messages_are_refused_in_words(sites):
    for content in (sites.relay.summon, sites.sealed().to_bytes(), sites.relay.deliver("east")):
        kind = {32: Summon, 35: Sealed, 36: Deliver}[content[5]]
        for bad in (b"", content[:5], content[:60], content[:4] + b"\x09" + content[5:], b"S3PL" + bytes(99)):
            with pytest.raises(ProtocolError):
                kind.from_bytes(bad)


@pytest.mark.parametrize("half", ["Ed25519", "ML-DSA-65"])
def test_who_breaks_one_of_two_signature_schemes_forges_no_key(sites, half):
    message = sites.delivered()["south"]
    signed = message.head.signature
    forged = bytes(64) + signed[64:] if half == "Ed25519" else signed[:64] + bytes(len(signed) - 64)
    with pytest.raises(SecureTriplayError):
        sites.site("south").answer(replace(message, head=replace(message.head, signature=forged)))
    assert sites.site("south").keys() is None
