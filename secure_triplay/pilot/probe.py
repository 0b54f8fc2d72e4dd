"""How fast this machine is, and how much memory a loaded model takes: measured once for each quantization."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from secure_triplay import memory
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, round_rule
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import add_mod, pack60, unpack60
from secure_triplay.model.blocks import require_blocks
from secure_triplay.pilot.costs import Speeds
from secure_triplay.pilot.trial import PublicLearner, PublicSetting
from secure_triplay.privacy.noise import NoiseSource

_IMAGES = 128
_STEPS = 2


def measure_speeds(setting: PublicSetting, study: Study, first: Speeds | None = None) -> Speeds:
    """What a study's model takes to load, and its speeds on the sample: a few real private steps, one ciphertext.

    Memory is measured for the `first` model of a process, which then holds more than a site would. What others take
    follows from it and their frozen weights: they are loaded in full precision likewise. Where the kernel cannot begin
    anew, what loading took is the most since the process began: no less. Raises ConfigError where the tower has fewer
    blocks than the study's adapter names.
    """
    memory.restart_peak()
    model = setting.model(study)
    require_blocks(
        model.adapter.n_blocks, study.adapter.last_blocks
    )  # a block's figures are of those that there are
    frozen = model.backbone.frozen_bytes
    loading, loaded = memory.peak_bytes(), memory.resident_bytes()
    if first is not None:
        loaded = first.loaded_bytes + frozen - first.frozen_bytes
        loading = max(first.loading_bytes, loaded)
    before = (setting.encoding_cpu_seconds, setting.encoded_images)
    records = [own for own in setting.train(model).values() if len(own)]
    setting.encoded(model, "test")
    largest = max(records, key=len)
    rate = min(1.0, _IMAGES / len(largest))
    rule = replace(round_rule(study), sampling_rate=rate, steps=_STEPS)
    learner = PublicLearner(model, largest, rule, NoiseSource(), len(largest))
    vector = setting.start(model)
    learner.update(vector)  # warms up, and checks the gradients of single records once
    learner.images, learner.seconds = 0.0, 0.0
    learner.update(vector)
    model.adapter.load_vector(vector)
    encrypt, opened = crypto_seconds(choose_codec(study, model.adapter.n_params))
    tokens = largest.tokens
    encoded = setting.encoded_images - before[1]
    return Speeds(
        blocks=study.adapter.last_blocks,
        rank=study.adapter.rank,
        params=model.adapter.n_params,
        layers=sum(".lora_B" in name for name in model.adapter.names) // study.adapter.last_blocks,
        tower_blocks=model.adapter.n_blocks,
        tokens=tokens.shape[1],
        width=tokens.shape[2],
        step_s_per_image=learner.seconds / max(1.0, learner.images),
        encode_s_per_image=(setting.encoding_cpu_seconds - before[0])
        / max(1, encoded)
        / torch.get_num_threads(),
        frozen_bytes=frozen,
        loading_bytes=loading,
        loaded_bytes=loaded,
        encrypt_s_per_chunk=encrypt,
        open_s_per_chunk=opened,
    )


def crypto_seconds(codec: Codec) -> tuple[float, float]:
    """Seconds to encode and encrypt one ciphertext, and to open one of all sites' sum.

    Opening grows by the expansion of each site's seed, so two real sums give the time of any. Where updates are
    masked, packing into words is in it; making masks and taking them off is not.
    """
    noise, key = NoiseSource(), CkksSecretKey.generate(codec.parameters)
    update = np.zeros(codec.n_params, np.float32)
    total = np.zeros((codec.n_chunks, codec.parameters.degree), np.uint64)
    seeds: list[bytes] = []
    sealing, opening = 0.0, []
    for _ in range(min(2, codec.n_sites)):
        started = time.process_time()
        integers = codec.quantise(update, noise)
        words = codec.pack(integers) if codec.masked else integers
        sealed = key.encrypt(codec.to_slots(words), codec.encode_tolerance)
        packed = pack60(sealed.c0)
        sealing = time.process_time() - started
        add_mod(total, unpack60(packed, codec.n_chunks))
        seeds.append(sealed.seed)
        started = time.process_time()
        sums = codec.sum_from_slots(key.decrypt(total, seeds), len(seeds))
        if codec.masked:
            codec.unpack(sums, len(seeds))
        opening.append(time.process_time() - started)
    a_site = max(0.0, opening[-1] - opening[0])
    return sealing / codec.n_chunks, (opening[0] + a_site * (codec.n_sites - 1)) / codec.n_chunks
