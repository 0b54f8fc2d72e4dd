"""What a site's worker is started with; importing this loads no model and no key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secure_triplay.config import Study


@dataclass(frozen=True)
class Job:
    """One site's part in a study; all of it is public or a path.

    `test_part` (k, n): this site measures the public test records k, k + n, k + 2n, ...
    """

    study: Study
    epoch: int
    site: str
    folder: Path
    socket_path: Path
    test_part: tuple[int, int]
    threads: int
