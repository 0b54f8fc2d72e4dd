"""From what a study says of masks to their parameters. Not for the server, which reads no study: it is given these."""

from __future__ import annotations

from secure_triplay.config import Study
from secure_triplay.crypto.masking.parameters import MaskingParameters


def choose_masking(study: Study, n_sites: int | None = None) -> MaskingParameters | None:
    """The masks' parameters for a roster of so many sites (all of the study's, unless said); None for a shared key.

    Raises ConfigError for numbers that cannot be had together, and says which could.
    """
    asked, n = study.masked, len(study.sites) if n_sites is None else n_sites
    if asked is None:
        return None
    return MaskingParameters.derive(
        n, colluders=asked.colluders, dropouts=asked.dropouts, threshold=asked.threshold
    )
