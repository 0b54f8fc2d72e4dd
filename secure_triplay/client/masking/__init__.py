"""SECRET. One site's half of a masked round; the protocol, its papers and theorems are in `crypto.masking`.

Not wired in yet: no round of a study calls it.
"""

from secure_triplay.client.masking.site import MaskingSite, Store

__all__ = ["MaskingSite", "Store"]
