"""How the files in this folder were made: `python tests/server/bad_inputs/make.py`. The keys were thrown away.

Each file is what somebody could send to the server in round 2 of the plan in plan.bin, and expected.json says why it
is refused. `good.bin` is what it accepts. Files that were made once are kept: a reader that takes another one of them
for good, or gives another reason, has changed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import tenseal

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.tag import TagKey
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import pack60
from secure_triplay.crypto.parameters import MODULUS, key_id
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Declined, Done, SessionPlan, Site, Upload, pack_tags

HERE = Path(__file__).parent
ROUND = 2


def reordered() -> None:
    """An upload of two chunks, and the same with its chunks the other way round, for a plan of their own."""
    codec = Codec.choose(n_sites=3, value_bits=9, n_params=30_000, limit=0.05)
    key, tags, signer = (
        CkksSecretKey.generate(codec.parameters),
        TagKey.generate(),
        SigningIdentity.generate(),
    )
    plan = SessionPlan(
        "5a" * 32,
        key_id(codec.parameters.context_id, bytes(32)),
        4,
        codec.n_chunks,
        (Site("east", signer.identity),),
    )
    values = np.random.default_rng(2).normal(0, 0.01, 30_000).astype(np.float32)
    sealed = key.encrypt(codec.to_slots(codec.quantise(values, NoiseSource())), codec.encode_tolerance)
    good = Upload.signed(
        plan,
        signer,
        round=ROUND,
        site="east",
        c0=pack60(sealed.c0),
        tags=pack_tags(tags.tag(sealed.c0, epoch=plan.epoch, round_number=ROUND, site="east")),
        seed=sealed.seed,
    )
    first, second = good.c0[: len(good.c0) // 2], good.c0[len(good.c0) // 2 :]
    (HERE / "two-chunks-plan.bin").write_bytes(plan.to_bytes())
    (HERE / "two-chunks-good.bin").write_bytes(good.to_bytes())
    (HERE / "two-chunks-reordered.bin").write_bytes(dataclasses.replace(good, c0=second + first).to_bytes())


def main() -> None:
    reordered()
    codec = Codec.choose(n_sites=3, value_bits=9, n_params=1000, limit=0.05)
    key, tags = CkksSecretKey.generate(codec.parameters), TagKey.generate()
    signers = {name: SigningIdentity.generate() for name in ("east", "north", "south")}
    plan = SessionPlan(
        "5a" * 32,
        key_id(codec.parameters.context_id, bytes(32)),
        4,
        codec.n_chunks,
        tuple(Site(name, signer.identity) for name, signer in signers.items()),
    )

    def upload(site="east", *, of=plan, signer=None, round=ROUND, c0=None, members=b""):
        values = np.random.default_rng(len(site)).normal(0, 0.01, 1000).astype(np.float32)
        sealed = key.encrypt(codec.to_slots(codec.quantise(values, NoiseSource())), codec.encode_tolerance)
        return Upload.signed(
            of,
            signer or signers[site],
            round=round,
            site=site,
            c0=pack60(sealed.c0) if c0 is None else c0,
            tags=pack_tags(tags.tag(sealed.c0, epoch=of.epoch, round_number=round, site=site)),
            seed=sealed.seed,
            members=members,
        )

    good = upload()
    content = good.to_bytes()
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 4096, -1, [54, 54])
    floats = np.random.default_rng(0).normal(0, 0.01, 7680).astype("<f4").tobytes()
    mallory = SigningIdentity.generate()
    stranger = dataclasses.replace(plan, sites=(*plan.sites, Site("mallory", mallory.identity)))
    forged = dataclasses.replace(
        plan, sites=(Site("east", mallory.identity), *(s for s in plan.sites if s.name != "east"))
    )
    raw = bytearray(pack60(np.random.default_rng(1).integers(0, MODULUS, (codec.n_chunks, 4096), np.uint64)))
    raw[:8] = ((1 << 60) - 1).to_bytes(8, "little")  # a coefficient above q
    files = {
        "plaintext-array": (floats, "not-a-message"),
        "signed-plaintext": (upload(c0=floats).to_bytes(), "not-a-ciphertext"),
        "signed-zeros": (upload(c0=bytes(len(good.c0))).to_bytes(), "not-a-ciphertext"),
        "context-with-secret-key": (context.serialize(save_secret_key=True)[:30_000], "not-a-message"),
        "other-parameters": (
            upload(of=dataclasses.replace(plan, n_chunks=1, key_id=b"p" * 32)).to_bytes(),
            "wrong-key",
        ),
        "other-study": (upload(of=dataclasses.replace(plan, study="6b" * 32)).to_bytes(), "wrong-study"),
        "other-epoch": (upload(of=dataclasses.replace(plan, epoch=3)).to_bytes(), "wrong-epoch"),
        "replay-of-round-1": (upload(round=1).to_bytes(), "wrong-round"),
        "masked-in-an-unmasked-round": (upload(members=bytes(32)).to_bytes(), "wrong-members"),
        "unknown-sender": (upload("mallory", of=stranger, signer=mallory).to_bytes(), "unknown-site"),
        "signed-by-another": (upload("east", of=forged, signer=mallory).to_bytes(), "bad-signature"),
        "altered-body": (content[:-1] + bytes([content[-1] ^ 1]), "bad-digest"),
        "coefficient-above-q": (upload(c0=bytes(raw)).to_bytes(), "coefficient-out-of-range"),
        "truncated": (content[: len(content) // 2], "not-a-message"),
        "one-byte-more": (content + b"\0", "not-a-message"),
        "oversized": (content + bytes(4096), "oversized"),
        "empty": (b"", "not-a-message"),
        "declined": (Declined().to_bytes(), "declined"),
        "another-message": (Done().to_bytes(), "not-an-upload"),
        "duplicate": (content, "duplicate"),
    }
    (HERE / "plan.bin").write_bytes(plan.to_bytes())
    (HERE / "good.bin").write_bytes(content)
    for name, (made, _) in files.items():
        if name != "duplicate":  # it is good.bin once more
            (HERE / f"{name}.bin").write_bytes(made)
    expected = {name: reason for name, (_, reason) in files.items()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    os.umask(0o022)
    main()
