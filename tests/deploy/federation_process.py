"""One process of a test's federation: python federation_process.py server|site|trains|run FOLDER [HOST, SUPERLINK]."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from secure_triplay.deploy.server.coordinator import run_study, start_server
from secure_triplay.deploy.site.start import start_site
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder


def say(event: dict) -> None:
    print(event, flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "server":
        start_server(ServerFolder.open(folder), say, host=(sys.argv[3:] or ["127.0.0.1"])[0])
    elif kind == "run":
        run_study(ServerFolder.open(folder), say)
    else:
        site = SiteFolder.open(folder)
        joined = JoinedStudy.open(site)
        worker = "worker" if kind == "trains" else "light"
        command = [
            sys.executable,
            "-m",
            f"secure_triplay.deploy.site.{worker}",
            str(site.path),
            joined.study.study,
        ]
        start_site(site, joined, say, worker_command=command, superlink=(sys.argv[3:] or [None])[0])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
