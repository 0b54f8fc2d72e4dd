"""What a stock SuperNode runs: Flower's own check, fed by our hub, against a site's own trust file."""

from __future__ import annotations

import hashlib

import pytest
import requests
import yaml
from flwr.supercore.fab import Fab
from flwr.supercore.utils import request_download_link
from flwr.superlink.servicer.control.control_handlers import _format_verification
from flwr.supernode.start_client_internal import _verify_fab

from secure_triplay.federation.bundle import APP_SPEC
from secure_triplay.federation.hub import hub
from secure_triplay.federation.join import TRUST


@pytest.fixture
def fetched(world):
    """The bundle as a SuperLink fetches it, with what north and east approved; south has not joined."""
    for name in ("north", "east"):
        world.server.take_confirmation(world.join(name))
    approvals = [joined.approval for joined in world.server.approvals().values()]
    with hub(lambda: (world.server.bundle.app_bytes, approvals)) as address:
        app, version = APP_SPEC.split("==")
        link, verifications, _ = request_download_link(app, version, f"{address}/hub/fetch-fab", "fab_url")
        content = requests.get(link, timeout=5).content
        assert requests.get(f"{address}/other", timeout=5).status_code == 404
    return content, _format_verification(verifications)


def trusted(world, name: str) -> dict:
    return yaml.safe_load((world.joined(name).folder / TRUST).read_text())


def runs(content: bytes, verifications: dict, trust: dict) -> bool:
    return _verify_fab(Fab(hashlib.sha256(content).hexdigest(), content, verifications), trust)


def test_a_supernode_runs_what_its_own_site_approved(world, fetched):
    content, verifications = fetched
    assert content == world.server.bundle.app_bytes
    for name in ("north", "east"):
        assert runs(content, verifications, trusted(world, name))


def test_a_supernode_refuses_every_other_bundle(world, fetched):
    content, verifications = fetched
    for other in (content + b"\0", content[:-1], b"", bytes([content[0] ^ 1]) + content[1:]):
        assert not runs(other, verifications, trusted(world, "north"))


def test_a_supernode_refuses_what_only_other_sites_approved(world, fetched):
    content, verifications = fetched
    own = next(iter(trusted(world, "north")))
    without = {key: value for key, value in verifications.items() if key != own}
    assert len(without) == len(verifications) - 1
    assert not runs(content, without, trusted(world, "north"))


def test_an_approval_cannot_be_moved_under_another_sites_name(world, fetched):
    content, verifications = fetched
    north, east = next(iter(trusted(world, "north"))), next(iter(trusted(world, "east")))
    assert not runs(content, {**verifications, north: verifications[east]}, trusted(world, "north"))
