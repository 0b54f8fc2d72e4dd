"""How many sites may collude or vanish in a masked round, and what follows: thresholds, graph, refusals.

*Complete graph*, up to 50 sites: one threshold t for shares, for signatures under the list of survivors, and for its
length. Refused unless t <= n - d (else d dropouts end the round) and 2 t > n + c (else an active server gets two
lists of survivors signed, see the package).

*Sparse graph*, above: sites stand on a ring in an order that follows from a public seed, and each is tied to the k/2
next on either side: the Harary graph of Bell et al. (2020), section 3.1. The list of survivors is still signed by
more than (n + c) / 2 of all, so there is one. With the colluders at random places (a seed that nobody chose after
the colluders were known), each of these fails with probability at most 2^-40 (privacy) or 2^-30 (completion; as in
their section 3), counted with exact hypergeometric tails and the union bound over n sites or windows:

    privacy      fewer than `share_threshold` of a site's k peers collude                                     (1)
    privacy      of any k/2 sites in a row fewer than `window` collude                                        (2)
    completion   with d dropouts at random places, `share_threshold` of each site's k peers are left          (3)
    completion   and `window` of any k/2 sites in a row                                                       (4)

An active server does not drop sites at random. So an honest site signs a list of survivors only if it has at least
`window` of any k/2 in a row (`accepts`). By (2) one of these is honest, so on the ring the next honest survivor is
always within k/2: the honest survivors are connected, and what is not masked between them is their sum alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb

from secure_triplay.errors import ConfigError

MAX_SITES = 1000
COMPLETE_UP_TO = 50
PRIVACY_BITS, COMPLETION_BITS = 40, 30


@dataclass(frozen=True)
class MaskingParameters:
    """n sites, of which c may collude with the server and d vanish; checked however it is made.

    `threshold` sites make and sign a list of survivors, `share_threshold` shares give a secret back; on the complete
    graph both are the paper's t. `peers` is the number k of sites that each is tied to, `window` as in equation (2),
    0 on the complete graph.
    """

    n_sites: int
    colluders: int
    dropouts: int
    threshold: int
    share_threshold: int
    peers: int
    window: int = 0

    @classmethod
    def choose(
        cls, n_sites: int, *, colluders: int, dropouts: int, threshold: int | None = None
    ) -> MaskingParameters:
        """The parameters for these numbers, with the least threshold that is safe unless one is given.

        Raises:
            ConfigError: if no threshold, or not this one, is safe and lets `dropouts` sites vanish.
        """
        _require_numbers(n_sites, colluders, dropouts)
        t = _least_threshold(n_sites, colluders) if threshold is None else threshold
        if n_sites <= COMPLETE_UP_TO:
            return cls(n_sites, colluders, dropouts, t, t, n_sites - 1)
        _require_threshold(n_sites, colluders, dropouts, t)
        share_threshold, peers, window = _graph(n_sites, colluders, dropouts) or (t, n_sites - 1, 0)
        return cls(n_sites, colluders, dropouts, t, share_threshold, peers, window)

    @classmethod
    def derive(
        cls,
        n_sites: int,
        *,
        colluders: int | None = None,
        dropouts: int | None = None,
        threshold: int | None = None,
    ) -> MaskingParameters:
        """The parameters where some of the numbers are left open.

        With none given three in ten, rounded down, may vanish, and as many may collude as that allows; with one
        given, the others are as large as it allows. With three sites one may collude, and then none may vanish:
        the server and one site are what masks are for, and a round waits for a site rather than lose that. Above 50
        sites at most one in ten collude, unless more are stated: that is what keeps the graph sparse.

        Raises ConfigError as `choose` does.
        """
        n, c, d, t = n_sites, colluders, dropouts, threshold
        if d is None:
            d = n - t if t is not None else 3 * n // 10 if c is None else max(0, n - _least_threshold(n, c))
        if c is None:
            most = n - 2 if n <= COMPLETE_UP_TO else n // 10
            c = max(0, min(2 * (n - d if t is None else t) - n - 1, most))
        return cls.choose(n, colluders=c, dropouts=d, threshold=t)

    def __post_init__(self) -> None:
        n, c, d = self.n_sites, self.colluders, self.dropouts
        _require_numbers(n, c, d)
        _require_threshold(n, c, d, self.threshold)
        if self.peers == n - 1:
            sound = (self.share_threshold, self.window) == (self.threshold, 0)
        else:
            sound = self.peers % 2 == 0 and 2 <= self.peers < n - 1 and n > COMPLETE_UP_TO
            sound = sound and _private(n, c, self.peers, self.share_threshold, self.window)
            sound = sound and _completes(n, d, self.peers, self.share_threshold, self.window)
        if not sound:
            raise ConfigError(
                f"{self.peers} peers a site with shares of {self.share_threshold} are not safe for {n} sites",
                where="masking", fix="take the parameters from MaskingParameters.choose",
            )  # fmt: skip

    @property
    def fewest_honest_survivors(self) -> int:
        """No sum over fewer honest sites is ever unmasked."""
        return self.threshold - self.colluders

    @property
    def complete(self) -> bool:
        """Whether each site is tied to every other."""
        return self.peers == self.n_sites - 1

    def peers_of(self, ring: Sequence[str], name: str) -> tuple[str, ...]:
        """The sites that `name` is tied to, when all stand in the order of `ring`."""
        if self.complete:
            return tuple(other for other in ring if other != name)
        at, n = ring.index(name), len(ring)
        reach = self.peers // 2
        return tuple(ring[(at + step) % n] for step in range(-reach, reach + 1) if step)

    def accepts(self, ring: Sequence[str], survivors: Collection[str]) -> bool:
        """Whether an honest site may sign this list: enough of all, and of any `peers / 2` in a row."""
        present = [name in survivors for name in ring]
        if sum(present) != len(survivors) or len(survivors) < self.threshold:
            return False
        if self.complete:
            return True
        length = self.peers // 2
        inside = sum(present[:length])
        for start in range(len(ring)):
            if inside < self.window:
                return False
            inside += present[(start + length) % len(ring)] - present[start]
        return True

    def in_words(self) -> str:
        """Who would have to collude for one site's update to be seen; for people."""
        n, c, d = self.n_sites, self.colluders, self.dropouts
        vanish = "no site may vanish" if d == 0 else f"up to {d} of {n} sites may vanish"
        return (
            f"To see one site's update, the server, whatever it does, needs the help of more than {c} of the {n} "
            f"sites. Otherwise all that it and they learn of updates is sums over at least "
            f"{self.fewest_honest_survivors} honest sites. "
            f"In a round {vanish}; with fewer than {self.threshold} left, the round fails and nothing is opened."
            + (" With two sites, the sum tells each of them the other's update." if n == 2 else "")
            + (
                ""
                if self.complete
                else " Above 50 sites this rests on an argument of ours that nobody else reviewed."
            )
        )


def require_threshold(parameters: MaskingParameters | None, quorum: int, n_sites: int) -> None:
    """Return nothing if a quorum of a roster does for its masks, or there are none. Raises ConfigError."""
    if parameters is None or (quorum >= parameters.threshold and n_sites == parameters.n_sites):
        return
    raise ConfigError(
        f"masks over {parameters.n_sites} sites need {parameters.threshold} of them, and a quorum of {quorum} of "
        f"{n_sites} is less",
        where="quorum", fix=f"choose {parameters.threshold} to {parameters.n_sites}",
    )  # fmt: skip


def _require_numbers(n_sites: int, colluders: int, dropouts: int) -> None:
    numbers = (n_sites, colluders, dropouts)
    if any(type(number) is not int for number in numbers):
        raise _refused("sites, colluders and dropouts are whole numbers", "correct the study")
    if not 2 <= n_sites <= MAX_SITES:
        raise _refused(f"masks are for 2 to {MAX_SITES} sites, not {n_sites}", "change the roster")
    if not 0 <= colluders <= n_sites - 2:
        raise _refused(
            f"with {colluders} of {n_sites} sites colluding, the sum is one honest site's update",
            f"state 0 to {n_sites - 2} colluders",
        )
    if not 0 <= dropouts < n_sites:
        raise _refused(f"{dropouts} of {n_sites} sites cannot vanish", f"state 0 to {n_sites - 1} dropouts")


def _least_threshold(n_sites: int, colluders: int) -> int:
    return (n_sites + colluders) // 2 + 1


def _require_threshold(n: int, c: int, d: int, t: int) -> None:
    least = _least_threshold(n, c)
    survivable = n - least
    can = "no dropout is survivable" if survivable == 0 else f"at most {survivable} dropouts are survivable"
    if type(t) is not int or t < least:
        raise _refused(
            f"a threshold of {t} does not do for {n} sites and {c} colluders: an active server could have two lists "
            "of survivors signed",
            f"choose {least} or more; then {can}",
        )
    if t > n - d:
        raise _refused(
            f"with {d} of {n} sites gone, {n - d} are left, and {t} are needed",
            f"with {c} colluders {can}: have more sites, or state fewer colluders or dropouts",
        )


@lru_cache(maxsize=64)
def _graph(n: int, c: int, d: int) -> tuple[int, int, int] | None:
    """The sparsest safe (share threshold, peers, window), or None where it would be the complete graph."""
    for peers in range(2, n - 1, 2):
        share_threshold = _least(n, n - 1, c, peers)
        window = _least(n, n, c, peers // 2)
        if share_threshold is None or window is None:
            continue
        # one share says nothing of a secret: the library needs two, and so does the argument
        share_threshold = max(share_threshold, 2)
        if _completes(n, d, peers, share_threshold, window):
            return share_threshold, peers, window
    return None


def _least(times: int, population: int, marked: int, draws: int) -> int | None:
    """The smallest number from 1 to `draws` that so many draws reach with probability 2^-40 at most."""
    low, high = 1, draws + 1
    while low < high:
        middle = (low + high) // 2
        if _rare(times, population, marked, draws, middle, PRIVACY_BITS):
            high = middle
        else:
            low = middle + 1
    return low if low <= draws else None


def _private(n: int, c: int, peers: int, share_threshold: int, window: int) -> bool:
    """Equations (1) and (2)."""
    shares = share_threshold >= 2 and _rare(n, n - 1, c, peers, share_threshold, PRIVACY_BITS)
    return shares and window >= 1 and _rare(n, n, c, peers // 2, window, PRIVACY_BITS)


def _completes(n: int, d: int, peers: int, share_threshold: int, window: int) -> bool:
    """Equations (3) and (4)."""
    shares = _rare(n, n - 1, d, peers, peers - share_threshold + 1, COMPLETION_BITS)
    return shares and _rare(n, n, d, peers // 2, peers // 2 - window + 1, COMPLETION_BITS)


def _rare(times: int, population: int, marked: int, draws: int, least: int, bits: int) -> bool:
    """Whether `times` P[at least `least` of `draws` from `population` are among `marked`] <= 2^-bits, exactly."""
    ways = sum(
        comb(marked, hits) * comb(population - marked, draws - hits)
        for hits in range(least, min(marked, draws) + 1)
    )
    return times * Fraction(ways, comb(population, draws)) <= Fraction(1, 1 << bits)


def _refused(what: str, fix: str) -> ConfigError:
    return ConfigError(what, where="masking", fix=fix)
