"""The Flower app bundle: a generated stub that imports the installed package and pins it.

A copy of this package inside the bundle would come first on `sys.path` and shadow the code that the site
installed and approved. So the stub holds no logic: it checks the version and the hash of the installed
package, and calls into it. What differs per study (the server's public settings) lies beside it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import secure_triplay
from secure_triplay.errors import RunError

APP_PACKAGE = "triplay_app"

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
    if "worker-socket" in context.node_config:
        return Path(str(context.node_config["worker-socket"]))
    return Path({sockets!r}) / str(context.node_config["partition-id"])
app = make_app(socket_path)
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
    """Write the stub app into `folder`; `sockets` is where a simulation's workers listen.

    Returns the path at which the server's public settings belong.
    """
    app = folder / APP_PACKAGE
    app.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "README.md").write_text(
        "Stub that calls the installed secure_triplay; it holds no code of its own.\n"
    )
    (app / "__init__.py").write_text("")
    (app / "pin.py").write_text(_PIN.format(version=secure_triplay.__version__, sha256=package_sha256()))
    (app / "server.py").write_text(_SERVER)
    (app / "client.py").write_text(_CLIENT.format(sockets=str(sockets)))
    return app / "server.json"
