"""The README's example runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_example_runs_as_it_stands(root):
    text = (root / "README.md").read_text()
    (code,) = re.findall(r"<!-- example: begin -->\n```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Privacy: epsilon 8 at delta 5e-06" in done.stdout
    assert "exact sums over up to 4 sites" in done.stdout


def test_every_file_that_it_links_to_exists(root):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (root / "README.md").read_text())
    assert links
    assert not [link for link in links if not (root / link).exists()]
