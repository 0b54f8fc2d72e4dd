"""A site's signing key on disk: read back as it was, never open to others, never overwritten."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.crypto.keyfile import NAME, load_identity, save_identity
from secure_triplay.errors import CryptoError


def test_a_key_comes_back_as_it_was(tmp_path):
    identity = SigningIdentity.generate()
    save_identity(tmp_path, identity)
    again = load_identity(tmp_path)
    identity.identity.verify(again.sign(Purpose.EVIDENCE, b"x"), Purpose.EVIDENCE, b"x")


def test_other_programs_can_read_the_format(tmp_path):
    identity = SigningIdentity.generate()
    save_identity(tmp_path, identity)
    command = ["openssl", "pkey", "-in", str(tmp_path / NAME), "-pubout", "-outform", "DER"]
    try:
        der = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
    except FileNotFoundError:
        pytest.skip("no openssl here")
    assert der[-32:] == identity.identity.public_bytes


def test_only_its_user_can_read_it(tmp_path):
    old = os.umask(0)
    try:
        path = save_identity(tmp_path, SigningIdentity.generate())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_refused(tmp_path):
    save_identity(tmp_path, SigningIdentity.generate()).chmod(0o640)
    with pytest.raises(CryptoError, match="other users"):
        load_identity(tmp_path)


def test_no_key_is_ever_overwritten(tmp_path):
    content = save_identity(tmp_path, SigningIdentity.generate()).read_bytes()
    with pytest.raises(CryptoError, match="already"):
        save_identity(tmp_path, SigningIdentity.generate())
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\x00" * 32])
def test_a_damaged_key_is_refused_without_quoting_it(tmp_path, content):
    save_identity(tmp_path, SigningIdentity.generate()).write_bytes(content)
    with pytest.raises(CryptoError, match="no Ed25519 key") as refused:
        load_identity(tmp_path)
    assert refused.value.__cause__ is None


def test_a_missing_key_says_what_to_do(tmp_path):
    with pytest.raises(CryptoError, match="no signing key"):
        load_identity(tmp_path)
