"""Batches by length under a budget."""

from hypothesis import given
from hypothesis import strategies as st

from humanomni.batching import plan_batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 8), st.none() | st.integers(1, 200))
def test_every_position_is_planned_once_within_the_limits(lengths: list[int], rows: int, budget: int | None) -> None:
    batches = list(plan_batches(lengths, rows, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    ordered = [lengths[position] for batch in batches for position in batch]
    assert ordered == sorted(lengths, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or budget is None or len(batch) * max(lengths[position] for position in batch) <= budget


def test_short_records_share_a_batch_that_long_ones_would_not_fit() -> None:
    assert list(plan_batches([100, 10, 10, 90, 10, 10], rows=8, token_budget=100)) == [[0], [3], [1, 2, 4, 5]]
