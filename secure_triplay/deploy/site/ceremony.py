"""SECRET. One site's part in a key ceremony: confirm, make or open the epoch's keys, and end them.

    Summon    -> Offer    a recipient key made for this epoch, on disk before it leaves
    MakeKeys  -> Sealed   only to a roster of which every site confirmed the very same bundle
    Deliver   -> Opened   the keys, from an envelope that only this site can open

Everything is in the vault, encrypted at rest, before its answer leaves; the same question again gets the same
answer, another one of the same epoch is refused. The recipient key ends once the keys are out of their envelope, and
`end_epoch` ends the keys with the epoch: whoever steals the folder later opens no recorded envelope and no upload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from secure_triplay.client.keys import (
    EpochKeys,
    Roster,
    destroy_keys,
    load_keys,
    make_keys,
    open_keys,
    save_keys,
)
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.double import DoubleIdentity, DoubleSigner
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.errors import CryptoError, ProtocolError
from secure_triplay.federation.ceremony import Deliver, MakeKeys, Offer, Offers, Opened, Sealed, Summon
from secure_triplay.wire import SessionPlan

RECIPIENT, OFFER, SEALED, PLAN, DELIVERED = "recipient-key", "offer", "sealed", "plan", "delivered"


@dataclass(frozen=True)
class SiteCeremony:
    """PUBLIC fields, but for `signer` and `vault`: what one site knows before the ceremony."""

    study: str
    epoch: int
    site: str
    bundle_sha256: bytes
    members: Mapping[str, DoubleIdentity]
    codec: Codec
    signer: DoubleSigner
    vault: Vault

    def answer(self, message: Summon | MakeKeys | Deliver) -> Offer | Sealed | Opened:
        """The reply, kept before it leaves. Raises CryptoError or ProtocolError, and then nothing has changed."""
        if (message.study, message.epoch) != (self.study, self.epoch):
            raise ProtocolError(
                "a key ceremony of another study or epoch", where="key ceremony", fix="look into the server"
            )
        if isinstance(message, Summon):
            return self._offer()
        if isinstance(message, MakeKeys):
            return self._make(message)
        return self._open(message)

    def keys(self) -> tuple[EpochKeys, SessionPlan] | None:
        """The epoch's keys and plan, where they came before and were not destroyed. Raises CryptoError."""
        plan = self.vault.load(PLAN)
        if plan is None or self.vault.load(DELIVERED) is None:
            return None
        self.vault.destroy(RECIPIENT)  # where the worker was killed just before it did
        keys = load_keys(self.codec.parameters, self.vault)
        return None if keys is None else (keys, SessionPlan.from_bytes(plan))

    def _offer(self) -> Offer:
        kept = self.vault.load(OFFER)
        if kept is not None:
            return Offer.from_bytes(kept)
        if self.vault.load(DELIVERED) is not None:
            raise ProtocolError(
                "this epoch has ended at this site", where="key ceremony", fix="take part in the next epoch"
            )
        key = EnvelopeKey.generate()
        offer = Offer.signed(
            self.signer,
            study=self.study,
            epoch=self.epoch,
            site=self.site,
            bundle_sha256=self.bundle_sha256,
            recipient=key.recipient.public_bytes,
        )
        self.vault.save(RECIPIENT, key.to_private_bytes())
        self.vault.save(OFFER, offer.to_bytes())
        return offer

    def _make(self, message: MakeKeys) -> Sealed:
        roster = self._roster(message.offers)
        kept = self.vault.load(SEALED)
        if kept is not None:
            sealed = Sealed.from_bytes(kept)
            if sealed.head.offers_sha256 != message.offers.sha256:
                raise ProtocolError(
                    "this epoch's keys were made for other offers already",
                    where="key ceremony",
                    fix="start a new epoch: secure-triplay study rotate",
                )
            return sealed
        name, envelopes = make_keys(self.codec.parameters, roster, self.site, self.signer.signer)
        sealed = Sealed.signed(
            self.signer,
            study=self.study,
            epoch=self.epoch,
            maker=self.site,
            offers=message.offers,
            key_id=name,
            n_chunks=self.codec.n_chunks,
            envelopes=envelopes,
        )
        self.vault.save(SEALED, sealed.to_bytes())
        return sealed

    def _open(self, message: Deliver) -> Opened:
        digest, kept = hashlib.sha256(message.to_bytes()).digest(), self.vault.load(DELIVERED)
        if kept is None:
            keys, plan = self._opened_keys(message)
            save_keys(keys, self.vault)
            self.vault.save(PLAN, plan.to_bytes())
            self.vault.save(DELIVERED, digest)
            self.vault.destroy(RECIPIENT)
        elif kept != digest:
            raise ProtocolError(
                "this epoch has another key at this site already",
                where="key ceremony",
                fix="look into the server; a new key needs a new epoch",
            )
        found = self.keys()
        if found is None:
            raise CryptoError(
                "this epoch's key was destroyed at this site",
                where="key ceremony",
                fix="start a new epoch: secure-triplay study rotate",
            )
        key_id = found[0].key_id
        return Opened.signed(self.signer, study=self.study, epoch=self.epoch, site=self.site, key_id=key_id)

    def _opened_keys(self, message: Deliver) -> tuple[EpochKeys, SessionPlan]:
        head = message.head
        roster = self._roster(message.offers)
        if head.offers_sha256 != message.offers.sha256 or head.maker not in self.members:
            raise _swapped()
        head.verify(self.members[head.maker])
        own = [offer.site for offer in message.offers.offers].index(self.site)
        if head.digests[own : own + 1] != (hashlib.sha256(message.envelope).digest(),):
            raise _swapped()
        if head.n_chunks != self.codec.n_chunks:
            raise ProtocolError(
                f"the maker encodes an update in {head.n_chunks} ciphertexts, and this site in {self.codec.n_chunks}",
                where="key ceremony",
                fix="install the same package and weights at every site",
            )
        kept = self.vault.load(RECIPIENT)
        if kept is None:
            raise CryptoError(
                "this site made no recipient key for this epoch, or destroyed it",
                where="key ceremony",
                fix="start a new epoch: secure-triplay study rotate",
            )
        keys = open_keys(
            message.envelope,
            self.codec.parameters,
            roster,
            maker=head.maker,
            site=self.site,
            name=head.key_id,
            key=EnvelopeKey.from_private_bytes(kept),
        )
        return keys, roster.plan(head.key_id, self.codec.n_chunks)

    def _roster(self, offers: Offers) -> Roster:
        offers.require_all(self.study, self.epoch, self.bundle_sha256, self.members)
        own = self.vault.load(OFFER)
        by_site = {offer.site: offer for offer in offers.offers}
        if own is None or by_site[self.site].to_bytes() != own:
            raise _swapped()
        keys = {
            site: (both.identity.public_bytes, by_site[site].recipient) for site, both in self.members.items()
        }
        return Roster.of(self.study, self.epoch, keys)


def end_epoch(vault: Vault) -> None:
    """End the epoch of this vault at this site."""
    destroy_keys(vault)
    for name in (RECIPIENT, SEALED, OFFER):
        vault.destroy(name)


def _swapped() -> CryptoError:
    return CryptoError(
        "a key or an envelope of the ceremony was swapped on its way",
        where="key ceremony",
        fix="look into the server; compare the roster code with the other sites out of band",
    )
