"""Three enrolled sites and a coordinator, in folders as the commands make them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from secure_triplay.federation import join
from secure_triplay.federation.join import Asked, JoinedStudy
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import SitePaths, StudyBundle, make_bundle
from secure_triplay.ledger.start import start

ROOT = Path(__file__).parent.parent.parent
NAMES = ("north", "east", "south")


def policy_content() -> dict:
    content = yaml.safe_load((ROOT / "configs" / "policies" / "public-data.yaml").read_text())
    content["delta"]["most_records"] = 2000
    return content


def study_content(names: tuple[str, ...] = NAMES) -> dict:
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["sites"] = [{"name": name} for name in names]
    content["aggregation"] = {"kind": "masked", "colluders": 0}  # so that two of three sites make a round
    # Who makes a bundle need not load a model; test_basis does.
    content["adapter"] |= {"basis": "seed", "output_rank": None}
    content["training"] |= {"rounds": 2}
    content["server_optimiser"] |= {"average_last": 1}
    return content


def make_site(folder: Path, name: str, policy: dict | None = None) -> SiteFolder:
    file = folder / f"{name}-policy.yaml"
    file.write_text(yaml.safe_dump(policy or policy_content()))
    site = SiteFolder.init(folder / name, name, file)
    start(site.path, site.policy_file, name=name, approved_by=f"Dr. {name}")
    return site


@dataclass(frozen=True)
class World:
    folder: Path
    sites: dict[str, SiteFolder]
    server: ServerFolder

    def look(self, name: str, bundle: Path | None = None) -> Asked:
        return join.look(self.sites[name], bundle or self.server.public_bundle, SitePaths())

    def join(self, name: str) -> Path:
        asked = self.look(name)
        return join.confirm(self.sites[name], asked, code=asked.bundle.code, approved_by=f"Dr. {name}")

    def joined(self, name: str) -> JoinedStudy:
        return JoinedStudy.open(self.sites[name])

    def file(self, bundle: StudyBundle, **changes: object) -> bytes:
        """The bundle that a coordinator would sign with something else in it."""
        fields = bundle.model_dump(mode="python") | changes
        return StudyBundle.model_construct(**fields).signed(self.server.signer)

    def rebuilt(self, **changes: Any) -> StudyBundle:
        """The founding bundle made once more, with something else in it."""
        before = self.server.bundle
        given = {
            "server": before.server,
            "ca_certificate": before.ca_certificate.encode(),
            "rules": before.rules,
        }
        enrolments = {
            name: text.encode() for name, text in zip(before.members, before.enrolments, strict=True)
        }
        return make_bundle(self.server.study, enrolments, self.server.signer, **(given | changes))


def copied(template: Path, folder: Path) -> World:
    """A test's own copy of what was made once for all."""
    shutil.copytree(template, folder)
    sites = {name: SiteFolder.open(folder / name) for name in NAMES}
    return World(folder, sites, ServerFolder.open(folder / "coordinator"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enrolled, with a bundle; nobody has joined. Made once, and copied for each test."""
    folder = tmp_path_factory.mktemp("template")
    sites = {name: make_site(folder, name) for name in NAMES}
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(study_content()))
    ServerFolder.create(
        folder / "coordinator",
        study,
        [site.enrolment_file for site in sites.values()],
        server="127.0.0.1:8443",
    )
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> World:
    """Enrolled, with a bundle; nobody has joined."""
    return copied(template, tmp_path / "world")
