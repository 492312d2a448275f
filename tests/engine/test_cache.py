"""The KV cache's book-keeping, against a plain model of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.engine.cache import PAGE, CacheFull, KVCache

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["extend", "truncate"]), st.integers(0, 2), st.integers(0, 3 * PAGE)),
    max_size=40,
)


@given(cells=st.integers(1, 6 * PAGE), steps=STEPS)
def test_slots_are_never_shared(cells: int, steps: list[Step]) -> None:
    cache, lengths = KVCache(cells, sequences=3), [0, 0, 0]
    slots: list[list[int]] = [[], [], []]
    for what, sequence, n in steps:
        if what == "truncate":
            cache.truncate(sequence, n)
            del slots[sequence][n:]
        else:
            pages = [-(-(len(s) + n * (i == sequence)) // PAGE) for i, s in enumerate(slots)]
            if sum(pages) > -(-cells // PAGE):
                with pytest.raises(CacheFull):
                    cache.extend(sequence, n)
            else:
                slots[sequence] += cache.extend(sequence, n).tolist()
        lengths = [cache.length(i) for i in range(3)]
        assert lengths == [len(s) for s in slots]
        taken = [slot for s in slots for slot in s]
        assert len(set(taken)) == len(taken)
        assert all(0 <= slot < -(-cells // PAGE) * PAGE for slot in taken)


def test_tables_say_where_positions_are() -> None:
    cache = KVCache(4 * PAGE, sequences=2)
    cache.extend(0, 10)
    cache.extend(1, PAGE + 1)
    slots = cache.extend(0, PAGE)
    positions = np.arange(10, 10 + PAGE)
    assert (slots == np.array(cache.table(0))[positions // PAGE] * PAGE + positions % PAGE).all()


def test_a_large_cache_costs_nothing_before_it_is_used() -> None:
    cache = KVCache(1 << 33)
    assert cache.extend(0, 3).tolist() == [0, 1, 2]


class Interrupting(list[int]):
    """Pages that were let go; a Ctrl+C comes when some are."""

    def extend(self, pages: object) -> None:
        super().extend(pages)
        raise KeyboardInterrupt


def test_an_interrupted_step_back_frees_nothing_twice() -> None:
    cache = KVCache(8 * PAGE, sequences=2)
    cache.extend(0, 3 * PAGE)
    cache._free = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        cache.truncate(0, PAGE)
    cache._free = list(cache._free)
    cache.truncate(0, 0)  # what the next text does
    slots = [*cache.extend(0, 4 * PAGE), *cache.extend(1, PAGE)]
    assert len(set(slots)) == len(slots)
