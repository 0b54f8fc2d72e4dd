"""What is refused, against attackers that are counted one by one; and the sparse graph against simple checks."""

import dataclasses
import itertools
import random
from math import comb

import pytest

from secure_triplay.crypto.identity import Identity
from secure_triplay.crypto.masking import MaskContext, MaskingParameters
from secure_triplay.errors import ConfigError


def two_lists_get_signed(n, colluders, threshold):
    """An active server shows each honest site one of two lists; colluders sign both. By brute force."""
    honest = n - colluders
    for shown in itertools.product((0, 1), repeat=honest):
        if all(shown.count(which) + colluders >= threshold for which in (0, 1)):
            return True
    return False


def both_kinds_of_share(n, colluders, threshold):
    """Each honest site gives one kind of share of some site, colluders both: are both secrets recovered?"""
    return any(min(ones, n - colluders - ones) + colluders >= threshold for ones in range(n - colluders + 1))


@pytest.mark.parametrize("n", range(2, 10))
def test_exactly_what_an_active_server_could_break_or_cannot_complete_is_refused(n):
    for colluders, dropouts, threshold in itertools.product(range(n), range(n), range(1, n + 1)):
        broken = (
            two_lists_get_signed(n, colluders, threshold)
            or both_kinds_of_share(n, colluders, threshold)
            or n - colluders < 2
        )
        fails = n - dropouts < threshold
        try:
            found = MaskingParameters.choose(n, colluders=colluders, dropouts=dropouts, threshold=threshold)
        except ConfigError:
            assert broken or fails, (n, colluders, dropouts, threshold)
            continue
        assert not broken, (n, colluders, dropouts, threshold)
        assert not fails, (n, colluders, dropouts, threshold)
        assert found.share_threshold == found.threshold == threshold > colluders
        assert found.fewest_honest_survivors >= min(2, n - colluders)


def test_a_rounds_hash_stays_what_it_was():
    """Sites of a study sign it, so every version of the program has to come to the same."""
    roster = {name: Identity(bytes([i]) * 32) for i, name in enumerate("abc", 2)}
    context = MaskContext("study", 1, 2, roster, MaskingParameters.derive(3))
    assert context.sha256.hex() == "09ebdb72546c472d0d9267987bab523c21c421064c4ad5707c7a8e17913f9aec"


def test_three_sites_with_one_colluder_survive_no_dropout_and_are_told_so():
    assert MaskingParameters.choose(3, colluders=1, dropouts=0).threshold == 3
    assert "no site may vanish" in MaskingParameters.choose(3, colluders=1, dropouts=0).in_words()
    with pytest.raises(ConfigError, match="no dropout is survivable"):
        MaskingParameters.choose(3, colluders=1, dropouts=1)


@pytest.mark.parametrize(
    "numbers", [(1, 0, 0), (1001, 0, 0), (5, -1, 0), (5, 4, 0), (5, 0, 5), (5, 0, -1), (5.0, 0, 0)]
)
def test_senseless_numbers_are_refused(numbers):
    n, colluders, dropouts = numbers
    with pytest.raises(ConfigError):
        MaskingParameters.choose(n, colluders=colluders, dropouts=dropouts)


def tail(population, marked, draws, least):
    """P[at least `least` marked among the draws], in floating point and from the other end."""
    below = sum(comb(marked, k) * comb(population - marked, draws - k) for k in range(least))
    return 1 - below / comb(population, draws) if below else 1.0


SPARSE = [(51, 5, 5), (100, 10, 10), (200, 20, 30), (1000, 100, 100)]


@pytest.mark.parametrize(("n", "colluders", "dropouts"), SPARSE)
def test_a_sparse_graph_s_tails_are_rare_enough(n, colluders, dropouts):
    found = MaskingParameters.choose(n, colluders=colluders, dropouts=dropouts)
    peers, window = found.peers, found.window
    assert peers < n - 1
    assert 2 * found.threshold > n + colluders
    # floating point resolves 2^-40 of 1 well enough for an upper bound with slack 2^-44
    slack = 2.0**-44
    assert n * (tail(n - 1, colluders, peers, found.share_threshold) - slack) <= 2.0**-40
    assert n * (tail(n, colluders, peers // 2, window) - slack) <= 2.0**-40
    assert n * (tail(n - 1, dropouts, peers, peers - found.share_threshold + 1) - slack) <= 2.0**-30
    assert n * (tail(n, dropouts, peers // 2, peers // 2 - window + 1) - slack) <= 2.0**-30


@pytest.mark.parametrize("change", [{"share_threshold": -1}, {"window": -1}, {"peers": -2}, {"peers": 1}])
def test_sparse_parameters_below_the_chosen_ones_are_refused(change):
    found = MaskingParameters.choose(100, colluders=10, dropouts=10)
    with pytest.raises(ConfigError):
        dataclasses.replace(found, **{name: getattr(found, name) + by for name, by in change.items()})


def test_degree_grows_much_slower_than_the_number_of_sites():
    degrees = [
        MaskingParameters.choose(n, colluders=n // 20, dropouts=n // 20).peers for n in (100, 400, 1000)
    ]
    assert degrees[-1] < 100
    assert degrees[-1] < 3 * degrees[0]


def neighbours_by_hand(ring, peers):
    """All pairs at most peers / 2 apart on the ring."""
    n = len(ring)
    found = {name: set() for name in ring}
    for (i, one), (j, other) in itertools.combinations(enumerate(ring), 2):
        if min(j - i, n - j + i) <= peers // 2:
            found[one].add(other)
            found[other].add(one)
    return found


def test_ties_are_mutual_and_as_many_as_promised():
    ring = [f"s{i}" for i in random.Random(0).sample(range(100), 100)]
    found = MaskingParameters.choose(100, colluders=10, dropouts=10)
    expected = neighbours_by_hand(ring, found.peers)
    for name in ring:
        assert set(found.peers_of(ring, name)) == expected[name]
        assert len(found.peers_of(ring, name)) == found.peers


def connected(names, ties):
    names, todo = set(names), [next(iter(names))]
    names -= set(todo)
    while todo:
        reached = ties[todo.pop()] & names
        names -= reached
        todo.extend(reached)
    return not names


def test_survivors_that_a_server_picks_are_refused_or_leave_the_honest_connected():
    """The server drops runs of neighbours, as many as it may; colluders stand at random."""
    found = MaskingParameters.choose(100, colluders=10, dropouts=10)
    ring = [f"s{i}" for i in range(100)]
    ties = neighbours_by_hand(ring, found.peers)
    accepted = refused = 0
    for seed in range(300):
        draw = random.Random(seed)
        colluding = set(draw.sample(ring, 10))
        gone = set()
        for _ in range(draw.choice([1, 2, 2, 3])):
            start, length = draw.randrange(100), draw.randint(1, found.peers // 2)
            gone |= {ring[(start + step) % 100] for step in range(length)}
        survivors = set(ring) - gone
        if not found.accepts(ring, survivors):
            refused += 1
            continue
        accepted += 1
        assert connected(survivors - colluding, ties)
        assert len(survivors) >= found.threshold
    assert accepted >= 30
    assert refused >= 30


def test_a_site_is_never_left_with_peers_that_are_all_lost_or_colluding():
    """The attack that the window is against: drop every peer of one site that is honest."""
    found = MaskingParameters.choose(200, colluders=20, dropouts=30)
    ring = [f"s{i}" for i in range(200)]
    colluding = set(random.Random(3).sample(ring[1:], 20))
    survivors = (set(ring) - set(found.peers_of(ring, "s0"))) | colluding
    assert len(survivors) >= found.threshold
    assert not found.accepts(ring, survivors)


def test_a_thousand_sites_are_planned():
    found = MaskingParameters.choose(1000, colluders=100, dropouts=100)
    assert found.in_words().startswith("To see one site's update, the server, whatever it does,")
    assert found.fewest_honest_survivors == 551 - 100
