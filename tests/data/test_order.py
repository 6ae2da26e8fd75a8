"""The order of the records: every one once an epoch, as Grain shuffles them."""

import grain
import hypothesis
from hypothesis import strategies as st

from xception_jax.data import order

seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=20, deadline=None)


def take(of: order.Shuffled, count: int, first: int = 0) -> list[int]:
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
