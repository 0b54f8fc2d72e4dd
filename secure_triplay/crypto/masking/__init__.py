"""Secure aggregation over the codec's integers: the public half. Masks modulo 2^W cancel inside the exact CKKS sum.

The public half: parameters, messages, and what anybody computes. The secret half is `secure_triplay.client.masking`;
`client.masks` and `server.masks` are how a study's rounds call the two, `wire.masks` is what travels.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), section 4 and
figure 4, in the version against active adversaries (section 6); above 50 sites on a sparse graph as in Bell et al.,
"Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (CCS 2020), section 3. Step by step:

| paper, figure 4 | here |
|---|---|
| setup: n, t, field, signing keys d | `MaskingParameters`, `MaskContext`; identities of the roster |
| round 0, AdvertiseKeys: c, s, signed | `MaskingSite.advertise` -> `MaskKeys` |
| round 1, ShareKeys: t-of-n shares of s and b, sealed to each peer | `MaskingSite.share` -> `SealedShares` |
| round 2, MaskedInputCollection: y = x + PRG(b) +/- PRG(s) | `MaskingSite.mask` -> residues, `members_hash` |
| round 3, ConsistencyCheck: signatures over the list of survivors | `MaskingSite.agree`, then the sum is signed |
| round 4, Unmasking: t signatures, then one kind of share a peer | `MaskingSite.reveal` -> `Revealed` |
| server: reconstruct, take the masks off | `recover`, then `remove_masks` at each site that opened the sum |

Differences, and why each is harmless:

- y is encrypted under CKKS and added as a ciphertext; sites decrypt the sum of the y as an integer, not modulo 2^W.
  It is a function of the y, which the paper's adversary sees one by one.
- The server recovers seeds and sends these on; it cannot take masks off, since it cannot decrypt. A seed is checked
  against what its owner signed in round 0: the mask key by its public half, the self mask by a second output of the
  HKDF that makes the mask. Outputs of a HKDF tell nothing of each other.
- Secrets are 16 bytes (an element of the field in which they are shared), from which HKDF derives keys.
- Every site signs, in its upload's header, the hash of the members that it masked with, and nobody signs a sum whose
  survivors did not all sign one and the same. On a sparse graph this, with `accepts`, keeps a server from
  surrounding a site with peers that it then declares lost. The paper's complete graph does not need it.

**What the theorem says** (Bonawitz et al., section 6; in the full version, ePrint 2017/281, 6.3 is for a curious
server and 6.5 for an active one, each with at most c sites on its side; the conditions are c < t and for the active
server 2 t > n + c, which is derived below, so that nothing rests on a theorem's number): everything that server and
colluders see can be made from the sum of the honest survivors' inputs, of whom there are at least t - c. It relies on
DDH in X25519 with HKDF, on ChaCha20, ChaCha20-Poly1305 and Ed25519, and takes HKDF as a random oracle.

On the sparse graph the theorem of Bell et al. is for a curious server and dropouts that it does not choose. That it
holds here against an active one rests on one signed list, on one list of members and on `accepts`; that argument (in
`parameters`) is ours, not theirs, and nobody else has reviewed it. Up to 50 sites nothing depends on it.

The bound against an active server, by counting. An honest site signs one list; a list needs t signatures. Two lists
would need 2 t signatures from n - c honest sites that give one each and c others that give two: 2 t <= n + c. So
with 2 t > n + c there is one list, and under it an honest site reveals one kind of share of each peer. The other kind
is held by the c < t colluders alone, who learn nothing from it. With n = 3, c = 1 this means t = 3: no dropout can
be survived.

**Rounds are independent.** Every secret of a round (b, s, c) is drawn afresh from the operating system for this round
and bound to it, and none is derived from anything that another round has. Whatever is revealed in one round, all of
it included, is therefore independent of every secret of another round.

**Where it fits into a round.** Keys of round t + 1 go up with the report of t and come down with its sum; sealed shares
go up with the approval and come down with the request to train t + 1. A masked upload's signed header carries the hash
of the members. The list of survivors is that of the sum, so its signature is the approval: one signature a site and
round, for good, and the quorum is at least `threshold`. Only `Revealed` needs an exchange of its own. A member that is
lost after it shared is unmasked from the others' shares; who did not share in time is no member of that round, and of
the next one again. What fails is asked again with the same bytes: a round has one set of members, one upload a site and
one sum, all on disk before they are shown, so that an update is never sent under two masks.

**What it is not.** Key agreement is X25519 alone, and thus not post-quantum, unlike the envelopes of the CKKS key.
Nothing here makes a site's input honest. A server that leaves out messages can stop a round, and so can a site that
shares rubbish and then vanishes. What the sum itself tells is told: with all but one of a sum's sites in the coalition,
that is the last one's update, which is why c <= n - 2 and no sum is over fewer than `threshold` sites.
"""

from secure_triplay.crypto.masking.arithmetic import masked_codec, residues
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.messages import MaskKeys, Revealed, SealedShares
from secure_triplay.crypto.masking.parameters import MaskingParameters
from secure_triplay.crypto.masking.recover import Recovered, recover, remove_masks

__all__ = [
    "MaskContext",
    "MaskKeys",
    "MaskingParameters",
    "Recovered",
    "Revealed",
    "SealedShares",
    "masked_codec",
    "recover",
    "remove_masks",
    "residues",
]
