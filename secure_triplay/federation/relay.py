"""The server's part in a key ceremony: carry offers and envelopes, verify every signature, open nothing.

    summon    the same to every site         -> offers
    make      to the maker, once all offered -> envelopes
    deliver   to each site its own           -> acknowledgements
    plan      what rounds of this epoch are verified against

Events in, messages out; Flower carries them. What does not verify is refused here already, and each site verifies
it all again for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from secure_triplay.crypto.double import DoubleIdentity
from secure_triplay.errors import ProtocolError, RunError
from secure_triplay.federation.ceremony import Deliver, MakeKeys, Offer, Offers, Opened, Sealed, Summon
from secure_triplay.federation.studybundle import StudyBundle
from secure_triplay.wire import SessionPlan, Site


@dataclass(frozen=True)
class Relay:
    """One epoch's ceremony as the server sees it: `(state, message) -> state`."""

    bundle: StudyBundle
    file: bytes
    base: int = 0
    offers: tuple[Offer, ...] = ()
    sealed: Sealed | None = None
    opened: frozenset[str] = frozenset()

    @property
    def summon(self) -> bytes:
        """What goes to every site first."""
        return self._summon(fresh=False)

    @property
    def summon_fresh(self) -> bytes:
        """What goes to a site that missed a whole epoch."""
        return self._summon(fresh=True)

    @property
    def maker(self) -> str:
        """Who makes the keys: the first site of the roster."""
        return next(iter(self.bundle.identities))

    @property
    def missing_offers(self) -> list[str]:
        """Sites that did not offer yet."""
        offered = {offer.site for offer in self.offers}
        return [site for site in self.bundle.identities if site not in offered]

    def take_offer(self, content: bytes) -> tuple[Relay, str]:
        """The ceremony with one more offer, and whose it is. Raises ProtocolError or CryptoError."""
        offer = Offer.from_bytes(content, max_bytes=16_384)
        due = (self.bundle.study_sha256, self.bundle.epoch, self.bundle.sha256)
        if (offer.study, offer.epoch, offer.bundle_sha256) != due:
            raise _refused("an offer is of another epoch or bundle")
        offer.verify(self._identity(offer.site))
        before = next((one for one in self.offers if one.site == offer.site), None)
        if before is None:
            return replace(self, offers=(*self.offers, offer)), offer.site
        if before.recipient != offer.recipient:
            raise _refused("a site offered two recipient keys in one epoch")
        return self, offer.site

    @property
    def make(self) -> bytes:
        """What goes to the maker. Raises RunError while a site is missing."""
        return MakeKeys(self.bundle.study_sha256, self.bundle.epoch, self._all_offers()).to_bytes()

    def take_sealed(self, content: bytes) -> Relay:
        """The ceremony with the maker's envelopes. Raises ProtocolError or CryptoError."""
        sealed = Sealed.from_bytes(content)
        head, offers = sealed.head, self._all_offers()
        due = (self.bundle.study_sha256, self.bundle.epoch, self.maker, offers.sha256)
        if (head.study, head.epoch, head.maker, head.offers_sha256) != due:
            raise _refused("envelopes are of another epoch or roster, or not by the maker")
        if len(sealed.envelopes) != len(offers.offers):
            raise _refused("an envelope is missing")
        head.verify(self._identity(self.maker))
        return replace(self, sealed=sealed)

    def deliver(self, site: str) -> bytes:
        """What goes to one site. Raises RunError before the envelopes are there."""
        if self.sealed is None:
            raise RunError("no key was sealed yet", where="key ceremony", fix="wait for the maker")
        offers = self._all_offers()
        index = [offer.site for offer in offers.offers].index(site)
        return Deliver(offers, self.sealed.head, self.sealed.envelopes[index]).to_bytes()

    def take_opened(self, content: bytes) -> tuple[Relay, str]:
        """The ceremony with one more acknowledgement, and whose it is. Raises ProtocolError or CryptoError."""
        opened = Opened.from_bytes(content, max_bytes=16_384)
        due = (self.bundle.study_sha256, self.bundle.epoch, self.plan.key_id)
        if (opened.study, opened.epoch, opened.key_id) != due:
            raise _refused("an acknowledgement is of another key")
        opened.verify(self._identity(opened.site))
        return replace(self, opened=self.opened | {opened.site}), opened.site

    @property
    def plan(self) -> SessionPlan:
        """What server and sites agree on in this epoch. Raises RunError before the key has a name."""
        if self.sealed is None:
            raise RunError("no key was sealed yet", where="key ceremony", fix="wait for the maker")
        sites = tuple(Site(name, both.identity) for name, both in self.bundle.identities.items())
        head = self.sealed.head
        return SessionPlan(self.bundle.study_sha256, head.key_id, self.bundle.epoch, head.n_chunks, sites)

    def _summon(self, *, fresh: bool) -> bytes:
        bundle = self.bundle
        return Summon(bundle.study_sha256, bundle.epoch, self.base, fresh, self.file).to_bytes()

    def _all_offers(self) -> Offers:
        if self.missing_offers:
            raise RunError(
                f"{', '.join(self.missing_offers)} did not offer a key for epoch {self.bundle.epoch}",
                where="key ceremony",
                fix="wait for them, or `secure-triplay study remove` those that stay away",
            )
        return Offers(tuple(sorted(self.offers, key=lambda offer: offer.site)))

    def _identity(self, site: str) -> DoubleIdentity:
        try:
            return self.bundle.identities[site]
        except KeyError as error:
            raise _refused("a site is not on the roster") from error


def _refused(what: str) -> ProtocolError:
    return ProtocolError(what, where="key ceremony", fix="look into the sender; nothing was accepted")
