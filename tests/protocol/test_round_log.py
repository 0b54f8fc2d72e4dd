"""The coordinator's log of closed rounds, while these close."""

from __future__ import annotations

from federation_driver import Federation, closing

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import save_identity
from secure_triplay.ledger.entries import RoundClosed
from secure_triplay.ledger.log import AuditLog
from secure_triplay.server.log import RoundLog


def rounds_in(folder):
    log = AuditLog.open(folder, None)
    try:
        return [entry.body.round for entry in log.chain.entries if isinstance(entry.body, RoundClosed)]
    finally:
        log.close()


def test_each_closed_round_is_read_once_and_noted_once_also_by_a_later_process(tmp_path, monkeypatch):
    signer = SigningIdentity.generate()
    save_identity(tmp_path, signer)
    AuditLog.create(tmp_path, signer, party="server", started_by="S").close()
    with closing(Federation(tmp_path / "run", 3, rounds=4)) as federation:
        read, archive = [], federation.archive
        total = archive.total
        with RoundLog(tmp_path, federation.plan) as log:
            while not federation.server.finished:
                federation.exchange()
                with monkeypatch.context() as patch:
                    patch.setattr(archive, "total", lambda number: read.append(number) or total(number))
                    log.take_in(archive, 0)
        assert read == [1, 2, 3, 4]
        with RoundLog(tmp_path, federation.plan) as log:
            log.take_in(archive, 0)
    assert rounds_in(tmp_path) == [1, 2, 3, 4]
