"""The closed set of messages between server and sites, as bytes and back.

`plan` is what both agree on, `upload` carries ciphertexts, `exchange` the two exchanges of a round, `unmask` the third
one of a masked round, and `masks` what the others carry for it. No field holds
free text, so a diagnostic, a metric or a record count has nowhere to travel. Every value is checked when it is
made, whether from bytes or by hand; bytes and encoding are in `wireformat`.
"""

from secure_triplay.wire.exchange import (
    MAX_CATCH_UP_BYTES,
    MAX_HEADS,
    Approval,
    Behind,
    CatchUp,
    Closed,
    Declined,
    Done,
    Endorsement,
    Report,
    Train,
    Witness,
    endorse,
    verify_endorsement,
    verify_quorum,
)
from secure_triplay.wire.heads import Countersignature, HeldHead, LedgerHead
from secure_triplay.wire.masks import HeldShares, MemberSeed, mask_context, names_of
from secure_triplay.wire.plan import TAG_BYTES, SessionPlan, Site, require_quorum, sum_bytes, upload_bytes
from secure_triplay.wire.unmask import Unmask, Unmasked
from secure_triplay.wire.upload import SignedHeader, SumMessage, Then, Upload, pack_tags, unpack_tags

__all__ = [
    "MAX_CATCH_UP_BYTES",
    "MAX_HEADS",
    "TAG_BYTES",
    "Approval",
    "Behind",
    "CatchUp",
    "Closed",
    "Countersignature",
    "Declined",
    "Done",
    "Endorsement",
    "HeldHead",
    "HeldShares",
    "LedgerHead",
    "MemberSeed",
    "Report",
    "SessionPlan",
    "SignedHeader",
    "Site",
    "SumMessage",
    "Then",
    "Train",
    "Unmask",
    "Unmasked",
    "Upload",
    "Witness",
    "endorse",
    "mask_context",
    "names_of",
    "pack_tags",
    "require_quorum",
    "sum_bytes",
    "unpack_tags",
    "upload_bytes",
    "verify_endorsement",
    "verify_quorum",
]
