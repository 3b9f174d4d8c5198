import itertools

import numpy as np
import pytest
import reference

from chipgen.draws import next_uniform, states, uniform


def test_the_reference_draws_the_published_numbers():
    # the test values of SplitMix64 that go round, for the seed 1234567
    state, drawn = 1234567, []
    for _ in range(5):
        state, bits = reference.split_mix(state)
        drawn.append(bits)
    assert drawn == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**63, 2**64 - 1])
def test_numbers_drawn_one_by_one_are_those_of_split_mix(seed):
    state = np.array([seed], np.uint64)
    expected = seed
    for _ in range(1000):
        drawn = next_uniform(state)
        expected, bits = reference.split_mix(expected)
        assert drawn == (bits >> 11) / 2**53
        assert int(state[0]) == expected


def expected_state(seed, one_id, stream):
    step = 0x9E3779B97F4A7C15
    _, root = reference.split_mix((seed + stream * step) & reference.MASK)
    return reference.split_mix((one_id * step + root) & reference.MASK)[1]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**62])
@pytest.mark.parametrize("stream", [0, 1, 5, 1 << 20])
def test_states_are_those_of_split_mix(seed, stream):
    ids = np.array([0, 1, 2, 139, 581929, 2**40, 2**63 - 1, -1, -(2**63)])
    found = states(seed, ids, stream)
    assert found.dtype == np.uint64
    assert found.tolist() == [expected_state(seed, one_id, stream) for one_id in ids.tolist()]
    drawn = uniform(seed, ids, stream)
    assert drawn.dtype == np.float64
    assert drawn.tolist() == [(state >> 11) / 2**53 for state in found.tolist()]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_no_ids_draw_nothing(dtype):
    nothing = np.zeros(0, dtype)
    assert states(0, nothing, 0).shape == (0,)
    assert uniform(0, nothing, 0).shape == (0,)


def test_ids_of_any_integer_type_draw_the_same():
    ids = np.arange(100)
    for dtype in (np.int32, np.int16, np.uint32):
        np.testing.assert_array_equal(states(3, ids.astype(dtype), 1), states(3, ids, 1))


def test_numbers_lie_from_zero_to_below_one_and_spread_evenly():
    drawn = [uniform(seed, np.arange(100_000), stream) for seed in (0, 1) for stream in (0, 9)]
    state = np.array([5], np.uint64)
    drawn.append(np.array([next_uniform(state) for _ in range(100_000)]))
    for numbers in drawn:
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert abs(counts - 5000).max() < 350  # five standard deviations
        assert len(np.unique(numbers)) == len(numbers)


def test_seeds_streams_and_ids_all_make_a_difference():
    ids = np.arange(1000)
    rows = {(seed, stream): states(seed, ids, stream) for seed in range(6) for stream in range(6)}
    assert len(np.unique(np.concatenate(list(rows.values())))) == 36 * 1000
    for one, other in itertools.combinations(rows, 2):
        pair = [(rows[key] >> np.uint64(11)) * 2.0**-53 for key in (one, other)]
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.2


def test_numbers_of_states_drawn_on_from_are_different_too():
    # what one id draws next must not be what its neighbour draws
    drawn = []
    for state in states(0, np.arange(200), 0):
        own = np.array([state])
        drawn += [next_uniform(own) for _ in range(100)]
    assert len(set(drawn)) == len(drawn)


def test_what_an_id_draws_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**40, 500)
    together = states(4, ids, 2)
    order = rng.permutation(500)
    np.testing.assert_array_equal(states(4, ids[order], 2), together[order])
    np.testing.assert_array_equal(uniform(4, ids[order], 2), uniform(4, ids, 2)[order])
    alone = [states(4, ids[i : i + 1], 2)[0] for i in range(500)]
    np.testing.assert_array_equal(alone, together)
