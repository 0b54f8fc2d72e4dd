"""The shim before the worker: whatever goes wrong, the server reads one constant."""

from __future__ import annotations

import socket
import threading

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from secure_triplay import parcel
from secure_triplay.client.app import make_app
from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.wire import Declined, Done


@pytest.fixture(autouse=True)
def _inside_a_flower_task(monkeypatch):
    """Flower's messages can be made inside one of its tasks only."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


DECLINED = Declined().to_bytes()


def ask(app, content=b"anything"):
    records = content if isinstance(content, RecordDict) else parcel.pack(content)
    message = Message(content=records, message_type="train", dst_node_id=1)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = app(message, context)
    assert not reply.has_error()
    return parcel.unpack(reply.content)


def test_a_missing_worker_is_told_as_declined_and_nothing_more(tmp_path):
    assert ask(make_app(lambda context: tmp_path / "none")) == DECLINED


@pytest.mark.parametrize(
    "error", [ValueError("shape (3, 56, 56) of /data/patient-7.png"), KeyboardInterrupt(), SystemExit(3)]
)
def test_the_text_of_an_exception_never_reaches_the_server(error):
    def socket_path(context):
        raise error

    assert ask(make_app(socket_path)) == DECLINED


@pytest.mark.parametrize("value", [7, "text"])
def test_a_request_that_is_not_bytes_is_declined(tmp_path, value):
    (name,) = parcel.pack(b"")
    records = RecordDict({name: ConfigRecord({parcel.RECORD: value})})
    assert ask(make_app(lambda context: tmp_path / "none"), records) == DECLINED


def test_the_workers_answer_travels_as_it_is(tmp_path):
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        with listener.accept()[0] as connection:
            assert receive_frame(connection) == b"anything"
            send_frame(connection, Done().to_bytes())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ask(make_app(lambda context: path)) == Done().to_bytes()
    thread.join()
    listener.close()


def test_a_worker_that_dies_in_the_middle_of_its_answer_is_declined(tmp_path):
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        with listener.accept()[0] as connection:
            receive_frame(connection)
            connection.sendall((100).to_bytes(8) + b"half")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ask(make_app(lambda context: path)) == DECLINED
    thread.join()
    listener.close()


def test_the_shim_imports_no_torch_and_no_key(fresh_imports):
    loaded = fresh_imports("secure_triplay.client.app")
    assert not loaded & {"torch", "tenseal", "peft", "opacus", "open_clip", "secure_triplay.client.ckks"}
