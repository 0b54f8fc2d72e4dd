"""Loads the driver, which is no test module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NAME = "federation_driver"
if _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name(f"{_NAME}.py"))
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_NAME] = _module
    _spec.loader.exec_module(_module)
