"""A site's own policy: what it will take part in, whatever a study asks.

The file is written by people at the site and read from the site's own disk; nothing that a server or a
study sends changes it. Every rule has to be stated: a rule that is left out is refused, not assumed.
"""

from secure_triplay.policy.checks import (
    Refusal,
    check_hours,
    check_participants,
    check_terms,
)
from secure_triplay.policy.document import (
    ReadPolicy,
    SitePolicy,
    load_policy,
    policy_content,
    policy_schema,
    read_policy,
)

__all__ = [
    "ReadPolicy",
    "Refusal",
    "SitePolicy",
    "check_hours",
    "check_participants",
    "check_terms",
    "load_policy",
    "policy_content",
    "policy_schema",
    "read_policy",
]
