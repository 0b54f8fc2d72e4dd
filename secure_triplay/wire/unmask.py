"""The exchange that only masked rounds have: enough signatures under a sum, and then shares of its masks' seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from secure_triplay.crypto.masking.messages import Revealed
from secure_triplay.wire.exchange import Endorsement
from secure_triplay.wire.masks import shares_from_list, shares_to_list
from secure_triplay.wire.records import as_lists, from_lists, require_records
from secure_triplay.wireformat import MAX_SITES, Message, fields_of, is_number, require, require_study


@dataclass(frozen=True)
class Unmask(Message):
    """Server to site: these signed the sum of `round`; reveal what this site holds for it."""

    study: str
    epoch: int
    round: int
    approvals: tuple[Endorsement, ...]

    kind: ClassVar[int] = 12

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Unmask)
        require(is_number(self.round, 1), "rounds count from 1", Unmask)
        require_records(self.approvals, Endorsement, MAX_SITES, Unmask)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round, as_lists(self.approvals)]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        study, epoch, round, approvals = fields_of(head, 4, cls)
        return cls(study, epoch, round, from_lists(approvals, Endorsement, cls))


@dataclass(frozen=True)
class Unmasked(Message):
    """Site to server: of each member of `round` the one share that its part in the sum calls for."""

    study: str
    epoch: int
    round: int
    revealed: Revealed

    kind: ClassVar[int] = 13

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Unmasked)
        require(is_number(self.round, 1), "rounds count from 1", Unmasked)
        require(type(self.revealed) is Revealed, "shares are due", Unmasked)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round, shares_to_list(self.revealed)]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        study, epoch, round, revealed = fields_of(head, 4, cls)
        return cls(study, epoch, round, Revealed(*shares_from_list(revealed, cls)))
