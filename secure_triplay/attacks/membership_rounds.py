"""Membership inference on the sum of each round, which every site opens, and not on the final adapter alone.

What rounds add is of two kinds. A record's gradient enters only the rounds in which it was drawn, so that changes in
its confidence are independent tries, whose likelihood ratios (Carlini et al. 2022) add up. And confidence itself is
seen many times over, so that its mean over the rounds is steadier than the last value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secure_triplay.attacks import membership
from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Outcome
from secure_triplay.attacks.games import Array, Game, Mask, Size

NAME = "membership-rounds"
_SIZES = {False: Size(200, 20, 4, 4), True: Size(60, 20, 4, 2)}


@dataclass(frozen=True)
class RoundsSeen:
    """What the attacker has of one target: changes in confidence, round by round.

    `target` (rounds, n) in the study's rounds, `shadows` (k, rounds, n) in its own, `shadow_members` (k, n).
    """

    target: Array
    shadows: Array
    shadow_members: Mask

    def each(self, score: Callable[[membership.Observation], Array]) -> Array:
        """The score of every round by itself (rounds, n)."""
        none = np.empty(0)
        return np.stack(
            [
                score(
                    membership.Observation(
                        self.target[r], self.shadows[:, r], self.shadow_members, none, none, none
                    )
                )
                for r in range(len(self.target))
            ]
        )

    def averaged(self, score: Callable[[membership.Observation], Array]) -> Array:
        """The score (n,) of the mean confidence over the rounds; what it was before them is the same for all."""
        none = np.empty(0)
        target, shadows = (
            np.cumsum(changes, axis=-2).mean(axis=-2) for changes in (self.target, self.shadows)
        )
        return score(membership.Observation(target, shadows, self.shadow_members, none, none, none))


ATTACKERS: dict[str, Callable[[RoundsSeen], Array]] = {
    "lira, rounds averaged": lambda seen: seen.averaged(membership.by_lira),
    "lira offline, rounds averaged": lambda seen: seen.averaged(membership.by_lira_offline),
    "lira of changes, added": lambda seen: np.asarray(seen.each(membership.by_lira).sum(axis=0)),
}


def scores(name: str, game: Game) -> tuple[Array, Array]:
    """Scores of members and of others over all targets."""
    members, others, k = [], [], game.n_shadows
    for target in range(k, len(game.members)):
        found = ATTACKERS[name](RoundsSeen(game.changes[target], game.changes[:k], game.members[:k]))
        members.append(found[game.members[target]])
        others.append(found[~game.members[target]])
    return np.concatenate(members), np.concatenate(others)


def run(setting: Setting) -> Outcome:
    """The games of `membership`, looked at after every round's sum.

    Raises DataError where the first site has too few records.
    """
    return membership.tried(setting, _CONTEST)


_CONTEST = membership.Contest(
    name=NAME,
    sizes=_SIZES,
    scores=scores,
    attackers=ATTACKERS,
    for_control="lira, rounds averaged",
    stream=0x3E4,
    note="encryption changes nothing here: every site opens every sum",
    not_tested=(
        "membership in sums of several sites: one site alone is attacked, and others' updates only hide its own",
    ),
    every_round=True,
)

ATTACK = Attack(
    name=NAME,
    title="Membership inference on the sum of every round",
    source="Carlini 2022 (LiRA), round by round; written anew, since no maintained tool takes federated rounds",
    needs=frozenset({Observable.STUDY, Observable.AGGREGATES}),
    run=run,
)
