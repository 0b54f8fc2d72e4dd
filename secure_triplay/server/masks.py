"""The server's part in masked rounds: it hands on keys and shares, and puts seeds together from what is revealed.

    keys      whose keys a round starts with: fixed before the first site sees them
    members   who shared with these: fixed before the first of them is asked to train
    seeds     from enough shares of each member, and on disk before any site opens the sum

Each is fixed once a round, so that a server that died asks for the same again. None of it opens a sum: for that a
CKKS key is needed. In a study with a shared key `SharedKey` stands in its place, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from secure_triplay.crypto.masking import MaskContext, MaskingParameters, recover
from secure_triplay.crypto.masking.messages import MaskKeys, Revealed, SealedShares, lists_hash, members_hash
from secure_triplay.errors import CryptoError, ProtocolError
from secure_triplay.server.archive import Archive
from secure_triplay.server.inbox import Admitted
from secure_triplay.wire import HeldShares, MemberSeed, SessionPlan, SumMessage, mask_context, names_of


class Masks(Protocol):
    """What `Rounds` asks about masks; `number` is always the round that they are for."""

    @property
    def unmasks(self) -> bool:
        """Whether a closed sum needs an exchange of its own before sites can open it."""

    def advertised(self, number: int, keys: MaskKeys | None) -> None:
        """A site's keys came."""

    def fix_keys(self, number: int, *, anew: bool = False) -> bool:
        """Settle whose keys the round starts with; `anew` where none were shown yet. False where they are too few."""

    def keys(self, number: int) -> tuple[MaskKeys, ...]:
        """The keys that all sites see."""

    def shared(self, number: int, shares: SealedShares | None) -> None:
        """A site's sealed shares came."""

    def fix_members(self, number: int) -> bool:
        """Settle who the members are. False where they are too few."""

    def admitted(self, number: int) -> Admitted | None:
        """Whose uploads may enter the sum; None for everybody's."""

    def members(self, number: int, site: str) -> tuple[HeldShares, ...]:
        """The members, with what they sealed to `site`."""

    def revealed(self, total: SumMessage, shares: Revealed) -> None:
        """A site's revealed shares came. Raises ProtocolError or CryptoError where they are not right."""

    def recover(self, total: SumMessage) -> bool:
        """Seeds from what was revealed, kept for the sum's readers. False where it is not enough."""


class SharedKey:
    """No masks: whoever holds the epoch's key and sees an upload can open it."""

    unmasks = False

    def advertised(self, number: int, keys: MaskKeys | None) -> None:
        """Nothing is expected."""

    def fix_keys(self, number: int, *, anew: bool = False) -> bool:
        """Nothing to settle."""
        return True

    def keys(self, number: int) -> tuple[MaskKeys, ...]:
        """None."""
        return ()

    def shared(self, number: int, shares: SealedShares | None) -> None:
        """Nothing is expected."""

    def fix_members(self, number: int) -> bool:
        """Nothing to settle."""
        return True

    def admitted(self, number: int) -> Admitted | None:
        """Everybody's."""
        return None

    def members(self, number: int, site: str) -> tuple[HeldShares, ...]:
        """None."""
        return ()

    def revealed(self, total: SumMessage, shares: Revealed) -> None:
        """Nothing is expected."""

    def recover(self, total: SumMessage) -> bool:
        """Nothing to recover."""
        return True


@dataclass
class Masked:
    """Masks of one plan's rounds, of which `last` is the last; what came in and is not settled is in memory only."""

    plan: SessionPlan
    parameters: MaskingParameters
    last: int
    archive: Archive
    note: Callable[..., None]
    unmasks: bool = field(default=True, init=False)
    _keys: dict[int, dict[str, MaskKeys]] = field(default_factory=dict, init=False)
    _shares: dict[int, dict[str, SealedShares]] = field(default_factory=dict, init=False)
    _revealed: dict[str, Revealed] = field(default_factory=dict, init=False)
    _contexts: dict[int, MaskContext] = field(default_factory=dict, init=False)
    _members: dict[int, tuple[SealedShares, ...]] = field(default_factory=dict, init=False)

    def advertised(self, number: int, keys: MaskKeys | None) -> None:
        """Keep a site's keys if it signed them for this round, and nobody would have to refuse them."""
        if keys is None or number > self.last:
            return
        try:
            keys.verify(self._context(number))
            keys.require_usable()
        except (CryptoError, ProtocolError):
            self.note("bad mask keys", round=number)
            return
        self._keys.setdefault(number, {}).setdefault(keys.site, keys)

    def fix_keys(self, number: int, *, anew: bool = False) -> bool:
        """Put the keys that came on disk, where there are enough and none were shown before."""
        if number > self.last:
            return True
        if not anew and self.archive.mask_keys(number):
            return True
        came = self._keys.get(number, {})
        if len(came) < self.parameters.threshold:
            return False
        self.archive.save_mask_keys(number, tuple(came[site] for site in sorted(came)))
        return True

    def keys(self, number: int) -> tuple[MaskKeys, ...]:
        """The keys on disk."""
        return () if number > self.last else self.archive.mask_keys(number)

    def shared(self, number: int, shares: SealedShares | None) -> None:
        """Keep a site's sealed shares if it signed them and shared with each of its peers."""
        if shares is None or number > self.last:
            return
        advertised = names_of(self.keys(number))
        try:
            if shares.site in advertised:
                shares.verify(self._context(number), advertised)
                self._shares.setdefault(number, {}).setdefault(shares.site, shares)
        except (CryptoError, ProtocolError):
            self.note("bad mask shares", round=number)

    def fix_members(self, number: int) -> bool:
        """Put those who shared on disk, where there are enough and no others are there."""
        if number > self.last or self._fixed(number):
            return True
        came = self._shares.get(number, {})
        if len(came) < self.parameters.threshold:
            return False
        self.archive.save_mask_members(number, tuple(came[site] for site in sorted(came)))
        self.note("members", round=number, sites=len(came))
        return True

    def admitted(self, number: int) -> Admitted | None:
        """The members, and the hash of them that their headers carry."""
        names = self._names(number)
        return Admitted(frozenset(names), members_hash(self._context(number), names))

    def members(self, number: int, site: str) -> tuple[HeldShares, ...]:
        """The members, with what they sealed to `site`."""
        return tuple(HeldShares(one.site, one.sealed.get(site, b"")) for one in self._fixed(number))

    def revealed(self, total: SumMessage, shares: Revealed) -> None:
        """Keep shares that a survivor signed for this very list of survivors."""
        context = self._context(total.round)
        shares.verify(context, lists_hash(context, self._names(total.round), total.names))
        if shares.site not in total.names:
            raise ProtocolError("shares of a site that is not in the sum", where="masking")
        self._revealed.setdefault(shares.site, shares)

    def recover(self, total: SumMessage) -> bool:
        """The members' seeds, on disk; what the round kept in memory goes."""
        number = total.round
        if not self.archive.mask_seeds(number):
            keys = {one.site: one for one in self.archive.mask_keys(number)}
            names = self._names(number)
            try:
                found = recover(self._context(number), keys, names, total.names, self._revealed.values())
            except (CryptoError, ProtocolError):
                return False
            seeds = {**found.survivors, **found.lost}
            self.archive.save_mask_seeds(
                number, tuple(MemberSeed.of(keys[name], seeds[name]) for name in names)
            )
        self._revealed.clear()
        for kept in (self._keys, self._shares, self._members, self._contexts):
            kept.pop(number, None)
        return True

    def _fixed(self, number: int) -> tuple[SealedShares, ...]:
        if not self._members.get(number):
            self._members[number] = self.archive.mask_members(number)
        return self._members[number]

    def _names(self, number: int) -> tuple[str, ...]:
        return names_of(self._fixed(number))

    def _context(self, number: int) -> MaskContext:
        if number not in self._contexts:
            self._contexts[number] = mask_context(self.plan, self.parameters, number)
        return self._contexts[number]
