"""SECRET. Masks in a site's rounds: what `session` calls, and at which points; the protocol is in `crypto.masking`.

    advertise   with the report of the round before
    share       with the approval of the round before
    mask        between rounding and encryption
    agree       before this site signs a sum: the one list of survivors that it will ever answer for
    reveal      once a quorum signed that sum: one kind of share of each member
    taken_off   before a sum is decrypted: the seeds are those that their owners committed to
    close       once the sum is applied: every secret of the round is forgotten

In a study with a shared key `SharedKey` stands in its place, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from secure_triplay.client.masking import MaskingSite
from secure_triplay.client.round import ApprovedSum, Member
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.codec import Integers
from secure_triplay.crypto.masking import MaskContext, MaskingParameters, Recovered, remove_masks
from secure_triplay.crypto.masking.messages import (
    MaskKeys,
    Revealed,
    SealedShares,
    lists_hash,
    members_hash,
)
from secure_triplay.errors import CryptoError, ProtocolError
from secure_triplay.wire import HeldShares, MemberSeed, SumMessage, mask_context, names_of

TakeOff = Callable[[Integers], Integers]
"""Decoded sums -> the sums of the sites' plain values (n_params,); with masks what was decoded are words (n_words,)."""


class Masks(Protocol):
    """What a session asks about masks; `number` is always the round that they are for."""

    def advertise(self, number: int) -> MaskKeys | None:
        """This site's keys of a round."""

    def share(self, number: int, keys: tuple[MaskKeys, ...]) -> SealedShares | None:
        """Shares of this site's secrets for the others; None where it is not among those whose keys came."""

    def joins(self, number: int, members: tuple[HeldShares, ...]) -> bool:
        """Whether this site may send an update in this round."""

    def mask(
        self, number: int, members: tuple[HeldShares, ...], integers: Integers
    ) -> tuple[Integers, bytes]:
        """Integers (n_params,) -> what is encrypted, and the hash of those with whom it is masked.

        Without masks that is the integers themselves, with masks their words (n_words,).
        """

    def agree(self, total: SumMessage) -> bool:
        """Whether this site signs a verified sum. Raises ProtocolError where its list of survivors is another."""

    def reveal(self, signed: ApprovedSum) -> Revealed:
        """This site's shares for a sum that a quorum signed."""

    def taken_off(self, total: SumMessage, seeds: tuple[MemberSeed, ...]) -> TakeOff:
        """How the masks come off a sum. Raises CryptoError or ProtocolError where the seeds are not the right ones."""

    def close(self, number: int) -> None:
        """Forget the secrets of a round that was applied."""

    def forget(self) -> None:
        """Forget all secrets: the epoch is over."""


class SharedKey:
    """No masks: what is encrypted is the update."""

    def advertise(self, number: int) -> None:
        """None."""

    def share(self, number: int, keys: tuple[MaskKeys, ...]) -> None:
        """None."""

    def joins(self, number: int, members: tuple[HeldShares, ...]) -> bool:
        """Always."""
        return True

    def mask(
        self, number: int, members: tuple[HeldShares, ...], integers: Integers
    ) -> tuple[Integers, bytes]:
        """The same."""
        return integers, b""

    def agree(self, total: SumMessage) -> bool:
        """Always, of a sum that nobody masked."""
        if total.members:
            raise _refused("a masked sum in a study that does not mask")
        return True

    def reveal(self, signed: ApprovedSum) -> Revealed:
        """There is nothing to reveal."""
        raise _refused("shares are asked for in a study that does not mask")

    def taken_off(self, total: SumMessage, seeds: tuple[MemberSeed, ...]) -> TakeOff:
        """The same."""
        if total.members or seeds:
            raise _refused("a masked sum in a study that does not mask")
        return lambda sums: sums

    def close(self, number: int) -> None:
        """Nothing is kept."""

    def forget(self) -> None:
        """Nothing is kept."""


class Masked:
    """Masks of one member's rounds after `applied`; made anew from the vault it goes on there."""

    def __init__(self, me: Member, parameters: MaskingParameters, vault: Vault, applied: int) -> None:
        self._me, self._parameters, self._vault = me, parameters, vault
        self._applied = applied
        self._sites: dict[int, MaskingSite] = {}
        self.close(applied)

    def advertise(self, number: int) -> MaskKeys:
        """This site's keys, drawn now if they were not before."""
        return self._site(number).advertise()

    def share(self, number: int, keys: tuple[MaskKeys, ...]) -> SealedShares | None:
        """Sealed shares; a list of keys that cannot be used leaves this site out of the round, and is noted."""
        # an honest server asks for the round after the one whose sum is due here, or for that one
        if not self._applied < number <= self._applied + 2 or self._me.name not in names_of(keys):
            return None
        try:
            return self._site(number).share(keys)
        except (CryptoError, ProtocolError) as error:
            self._me.note("not sharing", round=number, what=error.what)
            return None

    def joins(self, number: int, members: tuple[HeldShares, ...]) -> bool:
        """Whether it shared its secrets in time."""
        return self._me.name in names_of(members) and self._site(number).shared

    def mask(
        self, number: int, members: tuple[HeldShares, ...], integers: Integers
    ) -> tuple[Integers, bytes]:
        """The integers' words (n_words,) with masks added modulo 2^W, W the bits of a word."""
        sealed = {one.site: one.sealed for one in members}
        return self._site(number).mask(self._me.codec, names_of(members), sealed, integers)

    def agree(self, total: SumMessage) -> bool:
        """Whether this site is in the sum; then its list of survivors is this one for good."""
        if self._me.name not in total.names:
            return False
        if total.round > self._applied:
            self._site(total.round).agree(total.names, dict.fromkeys(total.names, total.members))
        return True

    def reveal(self, signed: ApprovedSum) -> Revealed:
        """This site's shares, for the very list that it agreed to."""
        total = signed.verified.message
        return self._site(total.round).reveal(total.names, signed.signers)

    def taken_off(self, total: SumMessage, seeds: tuple[MemberSeed, ...]) -> TakeOff:
        """Every seed held against its owner's signature before anything is decrypted."""
        context, members = self._context(total.round), names_of(seeds)
        if members_hash(context, members) != total.members:
            raise _refused("the seeds are not those of the members that masked")
        lists_hash(context, members, total.names)
        keys: Mapping[str, MaskKeys] = {one.site: one.keys for one in seeds}
        for one in keys.values():
            one.verify(context)
        found = {one.site: one.seed for one in seeds}
        recovered = Recovered(
            {name: found[name] for name in total.names},
            {name: found[name] for name in members if name not in total.names},
        )
        recovered.verify(context, keys, members, total.names)
        codec = self._me.codec
        return lambda sums: remove_masks(context, codec, keys, members, total.names, recovered, sums)

    def close(self, number: int) -> None:
        """Forget the round's secrets."""
        self._applied = max(self._applied, number)
        self._sites.pop(number, None)
        self._vault.destroy(_file(number))

    def forget(self) -> None:
        """Forget the rounds that were begun."""
        self._sites.clear()
        forget_masks(self._vault, self._applied)

    def _site(self, number: int) -> MaskingSite:
        if number <= self._applied:
            raise _refused(f"round {number} was applied here, and its secrets are gone")
        if number not in self._sites:
            context, store = self._context(number), self._vault
            self._sites[number] = MaskingSite(context, self._me.name, self._me.identity, store)
        return self._sites[number]

    def _context(self, number: int) -> MaskContext:
        return mask_context(self._me.plan, self._parameters, number)


def masks_of(me: Member, vault: Vault, applied: int) -> Masks:
    """The member's masks after round `applied`, or their absence."""
    return SharedKey() if me.masking is None else Masked(me, me.masking, vault, applied)


def forget_masks(vault: Vault, applied: int) -> None:
    """Destroy what an epoch that ended after round `applied` holds of masks: at most two rounds were begun."""
    for number in range(applied, applied + 3):
        vault.destroy(_file(number))


def _file(number: int) -> str:
    return f"mask-{number}"


def _refused(what: str) -> ProtocolError:
    return ProtocolError(what, where="server's message", fix="look into the server")
