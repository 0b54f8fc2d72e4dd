import dataclasses
import subprocess
import sys

import pytest
import tenseal.sealapi as seal

from secure_triplay.crypto.parameters import (
    DEGREE,
    MODULUS,
    MODULUS_BITS,
    NONCE_BYTES,
    CkksParameters,
    key_id,
)
from secure_triplay.errors import CryptoError


def test_modulus_is_the_prime_that_seal_creates():
    assert [prime.value() for prime in seal.CoeffModulus.Create(DEGREE, [MODULUS_BITS])] == [MODULUS]


def test_modulus_is_inside_the_128_bit_table_of_seal():
    assert seal.CoeffModulus.MaxBitCount(DEGREE, seal.SEC_LEVEL_TYPE.TC128) == 109 >= MODULUS.bit_length()


def test_context_id_depends_on_the_scale_and_is_stable():
    ids = {CkksParameters(scale_bits).context_id for scale_bits in range(8, 30)}
    assert len(ids) == 22
    assert CkksParameters(16).context_id == CkksParameters(16).context_id
    assert len(CkksParameters(16).context_id) == 32


def test_parameters_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CkksParameters(16).scale_bits = 17


@pytest.mark.parametrize("scale_bits", [0, -1, 59, 16.0, True, None])
def test_impossible_scale_is_refused(scale_bits):
    with pytest.raises(CryptoError, match="scale"):
        CkksParameters(scale_bits)


def test_another_ring_is_refused():
    with pytest.raises(CryptoError, match="ring"):
        CkksParameters(16, degree=8192)
    with pytest.raises(CryptoError, match="ring"):
        CkksParameters(16, modulus=MODULUS - 2)


def test_key_ids_differ_by_context_and_by_nonce():
    context, nonce = CkksParameters(16).context_id, bytes(NONCE_BYTES)
    names = {
        key_id(context, nonce),
        key_id(CkksParameters(17).context_id, nonce),
        key_id(context, b"\1" * 32),
    }
    assert len(names) == 3
    with pytest.raises(CryptoError):
        key_id(context, nonce[:-1])


def test_public_half_loads_no_module_that_can_decrypt_or_train():
    code = (
        "import sys\n"
        "from secure_triplay.crypto import codec, packing, parameters\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('tenseal', 'torch', 'cryptography')\n"
        "       or m.startswith('secure_triplay.client')]\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
