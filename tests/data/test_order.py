"""Orders of records: who is how often where, and that nothing but seed and position counts."""

import itertools

import grain
import hypothesis
import numpy as np
from hypothesis import strategies as st

from xception_jax.data import order

seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=20, deadline=None)


def take(of: order.Order, count: int, first: int = 0) -> list[int]:
    return [of[position] for position in range(first, first + count)]


@hypothesis.given(records=st.integers(100, 1500), seed=seeds, first=st.integers(0, 10**12))
@few
def test_shuffled_is_grains_shuffle(records, seed, first):
    grains = grain.MapDataset.range(records).shuffle(seed=seed).repeat()
    assert take(order.Shuffled(records, seed), 20, first) == [
        grains[position] for position in range(first, first + 20)
    ]


@hypothesis.given(records=st.integers(1, 500), seed=seeds, epoch=st.integers(0, 10**9))
@few
def test_shuffled_has_every_record_once_an_epoch(records, seed, epoch):
    shuffled = order.Shuffled(records, seed)
    assert sorted(take(shuffled, records, epoch * records)) == list(range(records))


@hypothesis.given(
    counts=st.lists(st.integers(0, 4), min_size=2, max_size=5).filter(any), seed=seeds
)
@few
def test_balanced_gives_every_class_its_turn_and_every_record_of_it(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    balanced = order.Balanced(labels, seed)
    classes = np.count_nonzero(counts)
    rounds = int(np.lcm.reduce([count for count in counts if count]))
    drawn = np.array(take(balanced, classes * rounds))
    for turn in labels[drawn].reshape(rounds, classes):
        assert sorted(turn) == [label for label, count in enumerate(counts) if count]
    for label, count in enumerate(counts):
        if count:
            own = drawn[labels[drawn] == label].reshape(-1, count)
            members = np.flatnonzero(labels == label)
            np.testing.assert_array_equal(np.sort(own), np.tile(members, (rounds // count, 1)))


def test_balanced_turns_have_orders_of_their_own():
    balanced = order.Balanced(np.arange(20), 0)
    assert take(balanced, 20) != take(balanced, 20, 20)


def test_repeated_stays_with_a_record():
    base = order.Shuffled(700, 3)
    repeated = order.Repeated(base, 3)
    expected = itertools.chain.from_iterable([record] * 3 for record in take(base, 10))
    assert take(repeated, 30) == list(expected)


@hypothesis.given(
    sizes=st.lists(st.integers(900, 1000), min_size=1, max_size=4), seed=seeds, data=st.data()
)
@few
def test_mixed_keeps_to_the_weights_and_to_each_order(sizes, seed, data):
    weights = data.draw(
        st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)), label="weights"
    )
    orders = [order.Shuffled(size, (seed + i) % 2**32) for i, size in enumerate(sizes)]
    mixed = order.mixed(orders, sizes, weights)
    drawn = np.array(take(mixed, 60))
    bounds = np.cumsum([0, *sizes])
    for i, (own, weight) in enumerate(zip(orders, weights, strict=True)):
        of_this = drawn[(bounds[i] <= drawn) & (drawn < bounds[i + 1])] - bounds[i]
        assert of_this.tolist() == take(own, len(of_this))
        assert abs(len(of_this) - 60 * weight / sum(weights)) <= len(sizes)


def test_mixed_is_the_same_from_any_position():
    mixed = order.mixed([order.Shuffled(1000, 0), order.Shuffled(300, 1)], [1000, 300], [0.8, 0.2])
    whole = take(mixed, 100)
    assert take(mixed, 40, 60) == whole[60:]
    assert sum(record >= 1000 for record in whole) == 20
