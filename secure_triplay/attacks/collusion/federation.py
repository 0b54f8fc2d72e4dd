"""The federation that is attacked: real keys, real masks, real ciphertexts, a server that relays and keeps everything.

Every step is the library's that runs in a round (`client.masking`, `crypto.masking`, CKKS). What differs: it runs in
one process, and only the uploads that are asked for are encrypted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from secure_triplay.attacks.collusion.coalition import Coalition
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.masking import MaskingSite
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking import MaskContext, MaskingParameters, masked_codec, recover
from secure_triplay.errors import ProtocolError
from secure_triplay.privacy.noise import NoiseSource

VICTIM = "site-0"


class _Memory(dict[str, bytes]):
    """What a site keeps; the coalition reads that of its own sites."""

    def save(self, name: str, content: bytes) -> None:
        self[name] = content

    def load(self, name: str) -> bytes | None:
        return self.get(name)


@dataclass(frozen=True, repr=False)
class Played:
    """A round that was played to its end: what everybody holds. `second_list_refused` of the honest sites."""

    everything: Coalition
    second_list_refused: bool

    def coalition(self, sites: Collection[str]) -> Coalition:
        """What the server and these sites hold."""
        whole = self.everything
        return Coalition(
            whole.key, whole.codec, whole.context, whole.keys, whole.members, whole.survivors, whole.uploads,
            whole.revealed, whole.recovered,
            {name: whole.memories[name] for name in sites}, {name: whole.inputs[name] for name in sites},
        )  # fmt: skip


class Federation:
    """Sites with one CKKS key between them, for updates (n_params,) within `limit`."""

    def __init__(
        self, parameters: MaskingParameters, *, value_bits: int, n_params: int, limit: float
    ) -> None:
        n = parameters.n_sites
        self.names = tuple(f"site-{i}" for i in range(n))
        self.plain = Codec.choose(n_sites=n, value_bits=value_bits, n_params=n_params, limit=limit)
        self.masked = masked_codec(n_sites=n, value_bits=value_bits, n_params=n_params, limit=limit)
        self._signers = {name: SigningIdentity.generate() for name in self.names}
        self._parameters, self._round = parameters, 0
        self._plain_key = CkksSecretKey.generate(self.plain.parameters)
        self._key = CkksSecretKey.generate(self.masked.parameters)

    def without_masks(self, integers: Integers) -> Integers:
        """What the server and one site read of an upload without masks: the shared key is all that it takes."""
        plain, key = self.plain, self._plain_key
        sealed = key.encrypt(plain.to_slots(integers), plain.encode_tolerance)
        return plain.sum_from_slots(key.decrypt(sealed.c0, [sealed.seed]), 1)

    def play(self, inputs: Mapping[str, Integers], *, encrypted: Collection[str]) -> Played:
        """One masked round over all sites, nobody lost."""
        self._round += 1
        roster = {name: self._signers[name].identity for name in self.names}
        context = MaskContext("c0" * 32, 1, self._round, roster, self._parameters, b"nobody chose this")
        stores = {name: _Memory() for name in self.names}
        sites = {name: MaskingSite(context, name, self._signers[name], stores[name]) for name in self.names}
        keys = [site.advertise() for site in sites.values()]
        sealed = [site.share(keys) for site in sites.values()]
        words, masked_with, names = {}, {}, self.names
        for name, site in sites.items():
            to_it = {one.site: one.sealed[name] for one in sealed if name in one.sealed}
            words[name], masked_with[name] = site.mask(self.masked, names, to_it, inputs[name])
        uploads = {
            name: self._key.encrypt(self.masked.to_slots(words[name]), self.masked.encode_tolerance)
            for name in encrypted
        }
        for site in sites.values():
            site.agree(names, masked_with)
        refused = all(_refuses(site, names[1:], masked_with) for site in sites.values())
        revealed = [site.reveal(names, names) for site in sites.values()]
        by_site = {one.site: one for one in keys}
        found = recover(context, by_site, names, names, revealed)
        memories = {name: next(iter(store.values())) for name, store in stores.items()}
        whole = Coalition(
            self._key, self.masked, context, by_site, names, names, uploads, tuple(revealed), found,
            memories, dict(inputs),
        )  # fmt: skip
        return Played(whole, refused)

    def quantised(self, update: np.ndarray[tuple[int], np.dtype[np.float32]], noise: NoiseSource) -> Integers:
        """An update (n_params,) as integers, the same for both encodings."""
        return self.plain.quantise(update, noise)


def _refuses(site: MaskingSite, fewer: tuple[str, ...], masked_with: Mapping[str, bytes]) -> bool:
    """Whether a site that signed one list signs no second one, without the victim, under which it would be unmasked."""
    try:
        site.agree(fewer, masked_with)
    except ProtocolError:
        return True
    return False
