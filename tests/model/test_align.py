from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_triplay.config import Adapter
from secure_triplay.errors import ConfigError, DataError
from secure_triplay.model.adapter import attach_adapter
from secure_triplay.model.align import fit_projection, install_projection
from secure_triplay.model.tower import ImageTower

Make = Any


def _unit(rng: np.random.Generator, *shape: int) -> Any:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_projection_is_the_ridge_solution() -> None:
    rng = np.random.default_rng(0)
    x, labels, t = _unit(rng, 40, 6), rng.integers(0, 3, 40), _unit(rng, 3, 5)
    got = fit_projection(x, labels, t, ridge=0.5)
    # Ridge as ordinary least squares with sqrt(ridge) * identity as further rows of zero target.
    more = np.vstack([x, np.sqrt(0.5) * np.eye(6)])
    expected = np.linalg.lstsq(more, np.vstack([t[labels], np.zeros((6, 5))]), rcond=None)[0].T
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_fit_is_deterministic_and_touches_nothing_but_what_it_is_given() -> None:
    rng = np.random.default_rng(1)
    given = (_unit(rng, 10, 4), rng.integers(0, 2, 10), _unit(rng, 2, 4))
    for array in given:
        array.setflags(write=False)
    kept = [array.copy() for array in given]
    first, again = (fit_projection(*given, ridge=0.1) for _ in range(2))
    assert np.array_equal(first, again)
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))
    # A pure function of its arguments: no image outside them can have a part in it.
    assert set(fit_projection.__code__.co_freevars) == set()
    assert not {"backbone", "load", "open"} & set(fit_projection.__code__.co_names)


def test_public_images_that_do_not_fit_are_refused() -> None:
    x, t = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    for features, labels in [
        (x, np.array([0, 1])),
        (x[:0], np.array([], dtype=np.int64)),
        (x, np.array([0, 1, 3])),
        (x, np.array([0, 1, -1])),
        (x * np.nan, np.array([0, 1, 2])),
    ]:
        with pytest.raises(DataError, match="public image"):
            fit_projection(features, labels, t, ridge=1.0)


def test_an_installed_projection_is_what_features_go_through(backbone: Make, images: Any) -> None:
    loaded = backbone("packaged")
    tower = ImageTower(loaded, 8)
    tokens = tower.prefix(images)
    before = tower.features(tokens)
    projection = np.random.default_rng(2).normal(size=(384, 384)).astype(np.float32)
    install_projection(loaded, projection)
    expected = before @ projection.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(tower.features(tokens), expected, atol=1e-5)


def test_a_trained_projection_is_never_overwritten(backbone: Make) -> None:
    with pytest.raises(ConfigError, match="not aligned"):
        install_projection(backbone("vit"), np.eye(256, dtype=np.float32))


def test_alignment_comes_before_the_adapter(backbone: Make) -> None:
    loaded = backbone("packaged")
    attach_adapter(loaded, Adapter(), b"seed")
    with pytest.raises(ConfigError, match="attached already"):
        install_projection(loaded, np.eye(384, dtype=np.float32))
