"""Which masked round a message belongs to: every signature, key and seal of masking is bound to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from secure_triplay.crypto.identity import Identity, transcript
from secure_triplay.crypto.masking.parameters import MaskingParameters
from secure_triplay.errors import ConfigError, ProtocolError


@dataclass(frozen=True)
class MaskContext:
    """PUBLIC. Study, key epoch and round; the roster with its identities; the parameters.

    `graph_seed` orders the sites on the ring of a sparse graph. Nobody may have chosen it after it was known who
    colludes; on the complete graph it decides nothing. Raises ConfigError if the roster is not the parameters'.
    """

    study: str
    epoch: int
    round: int
    roster: Mapping[str, Identity]
    parameters: MaskingParameters
    graph_seed: bytes = b""

    def __post_init__(self) -> None:
        n = len(self.roster)
        if n != self.parameters.n_sites or len(set(self.roster.values())) != n:
            raise ConfigError(
                f"{n} sites, with each identity once, are not the {self.parameters.n_sites} of the parameters",
                where="masking", fix="choose the parameters for this roster",
            )  # fmt: skip

    @cached_property
    def sha256(self) -> bytes:
        """Hash `(32,)` over everything in it."""
        p = self.parameters
        who = (self.epoch, self.round, p.n_sites, p.colluders, p.dropouts)
        numbers = (*who, p.threshold, p.share_threshold, p.peers, p.window)
        members = [part for name in self.names for part in (name.encode(), self.roster[name].public_bytes)]
        counted = [str(number).encode() for number in numbers]
        fields = (self.study.encode(), *counted, b"active", self.graph_seed, *members)
        return hashlib.sha256(transcript(b"masked round 1", *fields)).digest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The roster's sites in the order that settles who adds and who subtracts a pair's mask."""
        return tuple(sorted(self.roster))

    @cached_property
    def ring(self) -> tuple[str, ...]:
        """The sites in the order that follows from the seed."""
        return tuple(sorted(self.roster, key=self._place))

    def _place(self, name: str) -> bytes:
        return hashlib.sha256(transcript(b"place on the ring 1", self.graph_seed, name.encode())).digest()

    @cached_property
    def _peers(self) -> dict[str, tuple[str, ...]]:
        return {name: self.parameters.peers_of(self.ring, name) for name in self.ring}

    def peers(self, name: str) -> tuple[str, ...]:
        """The sites with which `name` shares masks. Raises ProtocolError for a stranger."""
        self.require_site(name)
        return self._peers[name]

    def holders(self, name: str) -> tuple[str, ...]:
        """The sites with shares of the secrets of `name`, itself among them; place i has the share of index i + 1."""
        return tuple(sorted((*self.peers(name), name)))

    def identity(self, name: str) -> Identity:
        """The identity of a site. Raises ProtocolError for a stranger."""
        self.require_site(name)
        return self.roster[name]

    def require_site(self, name: str) -> None:
        """Raise ProtocolError for a name that the roster does not list."""
        if name not in self.roster:
            raise ProtocolError("a site is not on the roster", where="masking", fix="look into the server")

    def require_list(self, names: tuple[str, ...], what: str) -> None:
        """Raise ProtocolError unless `names` are at least `threshold` sites of the roster, in order, each once."""
        listed = all(name in self.roster for name in names) and list(names) == sorted(set(names))
        if not listed or len(names) < self.parameters.threshold:
            raise ProtocolError(
                f"the list of {what} is not {self.parameters.threshold} or more sites of the roster in order",
                where="masking", fix="the round fails unless more sites answer",
            )  # fmt: skip
