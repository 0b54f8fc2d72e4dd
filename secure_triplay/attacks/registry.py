"""The attacks and audits by name. Modules are imported when they are asked for: names alone cost nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module

from secure_triplay.attacks.attack import Attack
from secure_triplay.errors import ConfigError

ATTACKS: dict[str, str] = {
    "span-inversion": "secure_triplay.attacks.span",
    "identification": "secure_triplay.attacks.identification",
    "gradient-matching": "secure_triplay.attacks.matching",
    "ciphertext-null": "secure_triplay.attacks.null",
    "peer-site": "secure_triplay.attacks.peer",
    "released-adapter": "secure_triplay.attacks.released",
    "embedding-leakage": "secure_triplay.attacks.embedding",
    "membership": "secure_triplay.attacks.membership",
    "membership-rounds": "secure_triplay.attacks.membership_rounds",
    "shared-key": "secure_triplay.attacks.shared_key",
    "key-recovery": "secure_triplay.attacks.key_recovery",
    "active-server": "secure_triplay.attacks.active_server",
    "network": "secure_triplay.attacks.network",
    "disk": "secure_triplay.attacks.disk",
    "malicious-site": "secure_triplay.attacks.malicious_site",
}
"""Name -> module with an `ATTACK` of that name, in the order in which the suite runs them."""

AUDITS: dict[str, str] = {
    "epsilon": "secure-triplay audit epsilon STUDY.yaml",
    "planted-bugs": "secure-triplay audit planted --out DIR",
    "collusion": "secure-triplay audit collusion --out DIR",
}
"""Audits with a command of their own, which `attack` does not run."""


def known() -> tuple[str, ...]:
    """Every name that a threat model may give under `audits`."""
    return (*ATTACKS, *AUDITS)


def require_known(name: str) -> None:
    """Raise ValueError, with the nearest name, unless there is such an attack or audit."""
    if name not in known():
        near = difflib.get_close_matches(name, known(), n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known())}"
        raise ValueError(f"there is no audit {name!r}; {hint}")


def load_attack(name: str) -> Attack:
    """The attack of that name. Raises ConfigError where there is none."""
    try:
        require_known(name)
    except ValueError as error:
        raise ConfigError(str(error), where="audits", fix="see `secure-triplay threats`") from error
    if name in AUDITS:
        raise ConfigError(f"{name} has a command of its own", where="audits", fix=f"run `{AUDITS[name]}`")
    attack: Attack = import_module(ATTACKS[name]).ATTACK
    if attack.name != name:
        raise ConfigError(
            f"the attack of {ATTACKS[name]} calls itself {attack.name!r}, not {name!r}",
            where="secure_triplay/attacks/registry.py",
            fix="give both the same name",
        )
    return attack


def load_attacks(names: Iterable[str]) -> tuple[Attack, ...]:
    """Those attacks, in the registry's order and each once; audits with a command of their own are left out."""
    wanted = set(names)
    return tuple(load_attack(name) for name in ATTACKS if name in wanted)
