"""The Flower app bundle: a generated stub that imports the installed package and pins it.

A copy of this package inside the bundle would come first on `sys.path` and shadow the code that the site
installed and approved. So the stub holds no logic: it checks the version and the hash of the installed
package, and calls into it. In a simulation the server's public settings lie beside it; in a real federation
there is nothing of a study in it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import secure_triplay
from secure_triplay.errors import RunError

APP_PACKAGE = "triplay_app"
APP_SPEC = "@secure-triplay/triplay-app==1.0.0"
"""How Flower names the bundle; with its version, because it caches what is named without one."""

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "triplay-app"
version = "1.0.0"
description = "Stub that calls the installed secure_triplay"
license = { file = "LICENSE" }
dependencies = ["flwr[simulation]>=1.41.0,<1.42.0"]

[tool.flwr.app]
publisher = "secure-triplay"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "triplay_app.server:app"
clientapp = "triplay_app.client:app"

[tool.flwr.app.config]
"""

_PIN = '''\
"""Refuse to run with another secure_triplay than the one this bundle was approved with."""
from secure_triplay.federation.bundle import require_package
require_package("{version}", "{sha256}")
'''

_SERVER = """\
from pathlib import Path
import triplay_app.pin
from secure_triplay.server.app import ServerSettings, make_app
app = make_app(ServerSettings.read(Path(__file__).with_name("server.json")))
"""

_CLIENT = """\
from pathlib import Path
import triplay_app.pin
from secure_triplay.client.app import make_app
def socket_path(context):
    return Path({sockets!r}) / str(context.node_config["partition-id"])
app = make_app(socket_path)
"""

_DEPLOYED_SERVER = """\
import triplay_app.pin
from secure_triplay.deploy.server.app import make_app
app = make_app()
"""

_DEPLOYED_CLIENT = """\
from pathlib import Path
import triplay_app.pin
from secure_triplay.client.app import make_app
app = make_app(lambda context: Path(str(context.node_config["worker-socket"])))
"""


def package_sha256() -> str:
    """Hash over the names and contents of the installed package's Python files."""
    root = Path(secure_triplay.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def require_package(version: str, sha256: str) -> None:
    """Raise RunError unless the installed package is the pinned one."""
    if (secure_triplay.__version__, package_sha256()) != (version, sha256):
        raise RunError(
            "the installed secure_triplay is not the one that this bundle was made for",
            where=f"bundle for version {version}, sha256 {sha256[:16]}…",
            fix="install the version that the study names, or make and approve a new bundle",
        )


def write_bundle(folder: Path, *, sockets: Path) -> Path:
    """Write the stub app of a simulation into `folder`; `sockets` is where its workers listen.

    Returns the path at which the server's public settings belong.
    """
    for path, content in _files(_SERVER, _CLIENT.format(sockets=str(sockets))).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder / APP_PACKAGE / "server.json"


def build_app() -> bytes:
    """The app bundle of a real federation: it depends on the installed package and on nothing else.

    No setting of a study is in it, so its hash stays the same over studies, epochs and machines for as long as
    the package does; server and site read what is theirs from their own folders.
    """
    from flwr.cli.build import build_fab_from_files

    files = {path: content.encode() for path, content in _deployed_files().items()}
    fab, _ = build_fab_from_files(files)
    return bytes(fab)


def require_own_app(fab: bytes) -> None:
    """Return nothing if a bundle holds exactly the files that the package installed here would write.

    So what a person approves is code that is at the site already. Raises RunError otherwise.
    """
    own = {path: content.encode() for path, content in _deployed_files().items()}
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            most = 2 * sum(len(content) for content in own.values()) + 10_000
            if len(sizes) != len(archive.infolist()) or sum(sizes.values()) > most:
                raise ValueError("a file twice, or too much")
            found = {name: archive.read(name) for name in sizes}
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise _other_app() from error
    # Flower writes the project file anew and adds a list of contents; both come out of building our own again.
    with zipfile.ZipFile(io.BytesIO(build_app())) as archive:
        if found != {name: archive.read(name) for name in archive.namelist()}:
            raise _other_app()


def _deployed_files() -> dict[str, str]:
    return _files(_DEPLOYED_SERVER, _DEPLOYED_CLIENT)


def _files(server: str, client: str) -> dict[str, str]:
    return {
        "pyproject.toml": _PYPROJECT,
        "LICENSE": "Apache-2.0\n",
        "README.md": "Stub that calls the installed secure_triplay; it holds no code of its own.\n",
        f"{APP_PACKAGE}/__init__.py": "",
        f"{APP_PACKAGE}/pin.py": _PIN.format(version=secure_triplay.__version__, sha256=package_sha256()),
        f"{APP_PACKAGE}/server.py": server,
        f"{APP_PACKAGE}/client.py": client,
    }


def _other_app() -> RunError:
    return RunError(
        "the study's app bundle is not the one that the package installed here would make",
        where="study bundle",
        fix=f"install the version that the coordinator uses (here it is {secure_triplay.__version__}), "
        "or have the coordinator make the study with this one",
    )
