"""SECRET. One site's half of a masked round; the protocol, its papers and theorems are in `crypto.masking`.

`client.masks` is how a study's rounds call it.
"""

from secure_triplay.client.masking.site import MaskingSite, Store

__all__ = ["MaskingSite", "Store"]
