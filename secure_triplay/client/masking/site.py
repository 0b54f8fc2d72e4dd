"""SECRET. One site in one masked round, as a durable state machine: figure 4 of Bonawitz et al. (2017), user's side.

What an answer stands on is in the store before the answer is returned, and each step is taken once: the same request
again gets the same answer, also after a restart, and any other one is refused. These refusals carry the guarantee:

    advertise   one set of secrets a round           else two sharings, two masks
    share       one set of peers' keys               else shares of one secret under several keys
    mask        one input and one list of members    else two inputs under one mask: their difference shows
    agree       one list of survivors                else both kinds of share of one peer
    reveal      only once enough sites signed it     else that list may not be the only one

Signatures under uploads, sums and lists are one and the same in a round, and `client.masks` verifies them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, NoReturn, Protocol

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking.arithmetic import require_masked, residues
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.expand import (
    KEY_BYTES,
    SEED_BYTES,
    add_masks,
    agree,
    derive,
    mask_private_key,
    new_seed,
    pair_mask_key,
    self_mask_check,
    self_mask_key,
    subtracts,
)
from secure_triplay.crypto.masking.messages import (
    MaskKeys,
    Revealed,
    SealedShares,
    by_site,
    lists_hash,
    members_hash,
)
from secure_triplay.crypto.masking.sharing import split
from secure_triplay.errors import CryptoError, ProtocolError

_NONCE = bytes(12)  # each sealing key seals one message


class Store(Protocol):
    """Where the round's state is kept, encrypted and durable: `client.vault.Vault`."""

    def save(self, name: str, content: bytes) -> None: ...
    def load(self, name: str) -> bytes | None: ...


class MaskingSite:
    """One site's secrets and decisions of one round; made anew from its store it goes on where it was.

    `name` must be on the context's roster, with the identity of `signer`. Raises CryptoError otherwise.
    """

    def __init__(self, context: MaskContext, name: str, signer: SigningIdentity, store: Store) -> None:
        if context.identity(name) != signer.identity:
            raise CryptoError(
                "this site's identity is not the one that the roster lists",
                where="masking", fix="take the roster that the sites signed",
            )  # fmt: skip
        self._context, self._name, self._signer, self._store = context, name, signer, store
        # by peers' seal keys; in memory only, since it follows from the store
        self._agreed: dict[bytes, bytes] = {}
        kept = store.load(self._file)
        self._state: dict[str, Any] = {} if kept is None else msgpack.unpackb(kept, strict_map_key=False)
        if kept is not None and self._state.get("context") != context.sha256:
            raise _again("with another roster or other parameters")

    @property
    def context(self) -> MaskContext:
        """The round that this is."""
        return self._context

    @property
    def _file(self) -> str:
        return f"mask-{self._context.round}"

    # round 0, AdvertiseKeys

    def advertise(self) -> MaskKeys:
        """Fresh keys of this round, signed; the secrets behind them are kept first."""
        if "self_seed" not in self._state:
            drawn = {"self_seed": new_seed(), "mask_seed": new_seed(), "seal_key": os.urandom(KEY_BYTES)}
            self._keep(context=self._context.sha256, **drawn)
        state, context = self._state, self._context
        seal = self._seal_private.public_key().public_bytes_raw()
        mask = mask_private_key(context, self._name, state["mask_seed"]).public_key().public_bytes_raw()
        check = self_mask_check(context, self._name, state["self_seed"])
        return MaskKeys.signed(context, self._name, self._signer, seal, mask, check)

    # round 1, ShareKeys

    def share(self, keys: Iterable[MaskKeys]) -> SealedShares:
        """Shares of this site's two secrets, sealed to each peer whose keys came.

        Raises:
            ProtocolError: if keys are too few, repeated, or not those of the first call.
            CryptoError: if a signature over keys does not verify.
        """
        own = self.advertise()
        found = by_site(keys)
        self._context.require_list(tuple(sorted(found)), "keys")
        if found.get(self._name) != own:
            raise _refused("this site's own keys are missing or others'")
        listed = [[k.site, k.seal_key, k.mask_key, k.self_mask_check, k.signature] for k in found.values()]
        listed.sort()
        if "keys" in self._state:
            if self._state["keys"] != listed:
                raise _again("with other keys")
            return self._sealed()
        for one in found.values():
            one.verify(self._context)
        holders, threshold = self._context.holders(self._name), self._context.parameters.share_threshold
        parts = zip(
            split(self._state["mask_seed"], threshold, len(holders)),
            split(self._state["self_seed"], threshold, len(holders)),
            strict=True,
        )
        shares = {holder: mask + own for holder, (mask, own) in zip(holders, parts, strict=True)}
        sealed = {
            peer: ChaCha20Poly1305(self._seal_key(found[peer], self._name, peer)).encrypt(
                _NONCE, content, None
            )
            for peer, content in shares.items()
            if peer != self._name and peer in found
        }
        self._keep(keys=listed, sealed=sealed, held={self._name: shares[self._name]})
        return self._sealed()

    @property
    def shared(self) -> bool:
        """Whether this site shared its secrets in this round, and may still take part in it."""
        return "keys" in self._state

    # round 2, MaskedInputCollection

    def mask(
        self, codec: Codec, members: tuple[str, ...], sealed: Mapping[str, bytes], integers: Integers
    ) -> tuple[Integers, bytes]:
        """Values (n_params,) int64 in [0, 2 levels] -> masked words (n_words,), to be encrypted.

        `members` are the sites that shared, in order; those of them that are peers are masked with. `sealed` is what
        peers sealed to this site; a share that does not open is noted as missing: others hold theirs. The second
        value is `members_hash`, which the upload's signed header carries.

        Raises:
            ProtocolError: if members are too few or unknown, or members or values are not those of the first call.
            CryptoError: if the values do not fit the codec.
        """
        require_masked(codec)
        keys = self._keys()
        masked_with = members_hash(self._context, members)
        if self._name not in members or not set(members) <= set(keys):
            raise _refused("a member sent no keys, or this site is none")
        words = codec.pack(integers)
        peers = [peer for peer in self._context.peers(self._name) if peer in members]
        once = hashlib.sha256(
            repr(codec).encode() + b"\0" + words.astype("<i8", copy=False).tobytes()
        ).digest()
        if self._state.get("members", list(members)) != list(members):
            raise _again("with other members")
        if self._state.get("input", once) != once:
            raise _again("with another update, whose difference to the first would show")
        held = dict(self._state["held"])
        for peer in peers:
            content = self._opened(keys[peer], sealed.get(peer, b"")) if peer not in held else None
            if content is not None:
                held[peer] = content
        self._keep(members=list(members), input=once, held=held)
        private = mask_private_key(self._context, self._name, self._state["mask_seed"])
        masks = [(self_mask_key(self._context, self._name, self._state["self_seed"]), False)]
        for peer in peers:
            key = pair_mask_key(self._context, private, keys[peer].mask_key, self._name, peer)
            masks.append((key, subtracts(self._name, peer)))
        total = words.astype("<u8")
        add_masks(total, masks)
        return residues(codec, total), masked_with

    # round 3, ConsistencyCheck

    def agree(self, survivors: tuple[str, ...], masked_with: Mapping[str, bytes]) -> None:
        """Take this list of survivors for the round's one: the caller signs the sum over them, and no other.

        `masked_with` is, by survivor, the `members_hash` in the header that it signed; the caller verified these.

        Raises:
            ProtocolError: if another list was agreed to, this site is not on it, it has too few sites, or one of
                them masked with other members than this site.
        """
        members = self._members()
        lists_hash(self._context, members, survivors)
        if self._name not in survivors:
            raise _refused("the round goes on without this site")
        if self._state.get("survivors", list(survivors)) != list(survivors):
            raise _again("with another list of survivors")
        expected = members_hash(self._context, members)
        if any(masked_with.get(name) != expected for name in survivors):
            raise _refused("a survivor masked with other members")
        self._keep(survivors=list(survivors))

    # round 4, Unmasking

    def reveal(self, survivors: tuple[str, ...], signers: Collection[str]) -> Revealed:
        """By peer, the share of its self mask if it survived, else of its mask key, once `threshold` sites signed.

        `signers` are those whose signature under the sum over `survivors` the caller verified.
        Raises ProtocolError if this is not the list that was agreed to, or fewer signed it.
        """
        if self._state.get("survivors") != list(survivors):
            raise _refused("this site has not agreed to this list of survivors")
        if len(set(signers) & set(self._context.roster)) < self._context.parameters.threshold:
            raise _refused("too few sites signed the list")
        members = self._members()
        lists = lists_hash(self._context, members, survivors)
        shares = {
            peer: content[SEED_BYTES:] if peer in survivors else content[:SEED_BYTES]
            for peer, content in self._state["held"].items()
            if peer in members
        }
        return Revealed.signed(self._context, self._name, self._signer, lists, shares)

    def _keep(self, **more: object) -> None:
        state = {**self._state, **more}
        self._store.save(self._file, msgpack.packb(state))
        self._state = state

    def _keys(self) -> Mapping[str, MaskKeys]:
        if "keys" not in self._state:
            raise _refused("this site has not shared its secrets")
        return {entry[0]: MaskKeys(*entry) for entry in self._state["keys"]}

    def _members(self) -> tuple[str, ...]:
        if "members" not in self._state:
            raise _refused("this site has masked nothing")
        return tuple(self._state["members"])

    def _sealed(self) -> SealedShares:
        return SealedShares.signed(self._context, self._name, self._signer, self._state["sealed"])

    def _seal_key(self, peer: MaskKeys, sender: str, recipient: str) -> bytes:
        secret = self._agreed.get(peer.seal_key)
        if secret is None:  # one agreement serves both directions; their keys differ by the names
            secret = agree(self._seal_private, peer.seal_key)
            self._agreed[peer.seal_key] = secret
        fields = (self._context.sha256, sender.encode(), recipient.encode())
        return derive(secret, b"sealed shares 1", *fields)

    @cached_property
    def _seal_private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self._state["seal_key"])

    def _opened(self, peer: MaskKeys, content: bytes) -> bytes | None:
        try:
            cipher = ChaCha20Poly1305(self._seal_key(peer, peer.site, self._name))
            return cipher.decrypt(_NONCE, content, None)
        except (InvalidTag, ValueError):
            return None

    def __repr__(self) -> str:
        return "<MaskingSite>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError("a round's secrets cannot be pickled", where="MaskingSite", fix="use its store")


def _refused(what: str) -> ProtocolError:
    return ProtocolError(
        f"a step of the masked round was refused: {what}", where="masking", fix="look into the server"
    )


def _again(how: str) -> ProtocolError:
    return ProtocolError(
        f"a step of the masked round was asked for twice, {how}",
        where="masking", fix="look into the server; an honest one asks the same again",
    )  # fmt: skip
