"""A site's confirmation, for the coordinator: which bundle a person there confirmed, and the approval of its app."""

from __future__ import annotations

from typing import ClassVar, Literal

from secure_triplay.config import Name, Sha256
from secure_triplay.crypto.identity import Purpose
from secure_triplay.errors import CryptoError
from secure_triplay.federation.approval import AppApproval
from secure_triplay.federation.documents import Document
from secure_triplay.federation.studybundle import StudyBundle


class Joined(Document):
    """PUBLIC. One site's yes to one bundle."""

    version: Literal[1] = 1
    site: Name
    bundle_sha256: Sha256
    approval: AppApproval

    purpose: ClassVar[Purpose] = Purpose.CONFIRMATION
    called: ClassVar[str] = "confirmation"

    def require_for(self, bundle: StudyBundle) -> None:
        """Return nothing if a site of the roster confirmed this very bundle and its app. Raises CryptoError."""
        member = bundle.members.get(self.site)
        if member is None or member.signer != self.signer:
            raise CryptoError(
                f"{self.site} is not on the roster with these keys",
                where="confirmation",
                fix="look into who sent this file",
            )
        if self.bundle_sha256 != bundle.sha256.hex():
            raise CryptoError(
                f"{self.site} confirmed another bundle than this one",
                where="confirmation",
                fix="send the site the bundle of this epoch, and have it join that",
            )
        self.approval.verify(member.approval_key, bundle.app_bytes)
