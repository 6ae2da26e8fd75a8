"""Orders of records: who is how often where, and that nothing but seed and position counts."""

import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import grain
import hypothesis
import numpy as np
from hypothesis import strategies as st

from xception_jax.data import order
from xception_jax.data.batches import Reader
from xception_jax.data.readers import joined
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source

seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=20, deadline=None)


def take(of: order.Order, count: int, first: int = 0) -> list[int]:
    return [of[position] for position in range(first, first + count)]


@hypothesis.given(
    records=st.integers(order._AT_ONCE + 1, 2**31), seed=seeds, first=st.integers(0, 10**12)
)
@few
def test_a_large_set_is_shuffled_as_grain_does(records, seed, first):
    grains = grain.MapDataset.range(records).shuffle(seed=seed).repeat()
    assert take(order.Shuffled(records, seed), 20, first) == [
        grains[position] for position in range(first, first + 20)
    ]


@hypothesis.given(records=st.integers(1, 500), seed=seeds, epoch=st.integers(0, 10**9))
@few
def test_shuffled_has_every_record_once_an_epoch(records, seed, epoch):
    shuffled = order.Shuffled(records, seed)
    assert sorted(take(shuffled, records, epoch * records)) == list(range(records))


def test_the_order_is_the_same_in_every_version():
    """A run goes on after an upgrade: these are what it was begun with."""
    assert take(order.Shuffled(10, 0), 12) == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4, 3, 7]
    assert take(order.Shuffled(2**20 + 1, 0), 3) == [645888, 526917, 784672]


def test_epochs_have_orders_of_their_own_also_where_threads_are_in_two():
    shuffled = order.Shuffled(1000, 3)
    epochs = [take(shuffled, 1000, 1000 * epoch) for epoch in range(3)]
    assert len(set(map(tuple, epochs))) == 3
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda i: shuffled[i // 3 + 1000 * (i % 3)], range(3000)))
    assert [at_once[epoch::3] for epoch in range(3)] == epochs


def test_a_permutation_is_made_once_however_many_threads_ask(monkeypatch):
    made = []
    permutation = order.Shuffled._permutation

    def counted(self, epoch):
        made.append(epoch)
        return permutation(self, epoch)

    monkeypatch.setattr(order.Shuffled, "_permutation", counted)
    shuffled = order.Shuffled(200_000, 3)
    start = threading.Barrier(16)

    def read(thread):
        start.wait()
        return [shuffled[200_000 - 800 + 16 * i + thread] for i in range(100)]

    with ThreadPoolExecutor(16) as pool:
        read_all = list(pool.map(read, range(16)))
    assert sorted(made) == [0, 1]
    expected = take(shuffled, 1600, 200_000 - 800)
    assert [record for reads in zip(*read_all, strict=True) for record in reads] == expected


def test_an_order_is_sent_to_another_process():
    shuffled = order.Shuffled(100, 3)
    assert take(pickle.loads(pickle.dumps(shuffled)), 150) == take(shuffled, 150)


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


def test_repeated_has_a_record_three_times_in_a_batch():
    base = order.Shuffled(700, 3)
    repeated = order.Repeated(base, 3, apart=4)
    first, second = take(base, 4), take(base, 4, 4)
    assert take(repeated, 24) == first * 3 + second * 3


def test_sampling_chooses_the_order_that_its_fields_ask_for():
    records = [{"image": b"", "label": i % 2} for i in range(12)]
    source = Source("set", ("a", "b"), records, "image", "label")
    both = joined.join([source, dataclasses.replace(source, records=records[:6])])

    def drawn(sampled: Source, **fields: object) -> list[int]:
        reader = Reader(sampled, Images(8), sampling=order.Sampling(**fields))
        return take(reader.order(3, batch_size=6), 24)

    seed = int(np.random.SeedSequence(3).generate_state(2)[0])
    plain = take(order.Shuffled(12, seed), 24)
    assert drawn(source) == plain
    assert drawn(source, repeats=1) == plain
    assert drawn(source, repeats=2) == take(
        order.Repeated(order.Shuffled(12, seed), 2, apart=3), 24
    )
    assert drawn(source, weights=(1.0,)) == plain, "of one set there is nothing to weigh"
    labels = np.arange(12) % 2
    assert drawn(source, balanced=True) == take(order.Balanced(labels, seed), 24)
    assert drawn(both, weights=(1, 2)) == take(order.Mixed([12, 6], (1, 2), seed), 24)
    assert drawn(both) == take(order.Shuffled(18, seed), 24)


@hypothesis.given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=4), seed=seeds, data=st.data()
)
@few
def test_mixed_keeps_to_the_weights_and_to_each_sets_epochs(sizes, seed, data):
    weights = data.draw(
        st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)), label="weights"
    )
    mixed = order.Mixed(sizes, weights, seed)
    drawn = np.array(take(mixed, 3000))
    bounds = np.cumsum([0, *sizes])
    for i, weight in enumerate(weights):
        of_this = drawn[(bounds[i] <= drawn) & (drawn < bounds[i + 1])] - bounds[i]
        expected = 3000 * weight / sum(weights)
        assert abs(len(of_this) - expected) <= len(sizes) + expected / 100
        for epoch in range(len(of_this) // sizes[i]):
            part = of_this[epoch * sizes[i] : (epoch + 1) * sizes[i]]
            assert sorted(part) == list(range(sizes[i])), "each once before any comes again"
    assert take(mixed, 100, 2500) == drawn[2500:2600].tolist(), "the same from any position"


def test_balanced_has_what_has_no_label_with_the_next_that_has_one():
    """So it is tried, found bad, counted, and replaced by one of the class whose turn it is."""
    drawn = take(order.Balanced(np.array([-1, 0, -1, -1, 1, 1, -1]), 0), 60)
    assert sorted(set(drawn)) == list(range(7))
    assert len([record for record in drawn if record in (6, 0, 1)]) == 30
    assert set(take(order.Balanced(np.full(3, -1), 0), 30)) == {0, 1, 2}
