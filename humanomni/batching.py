"""Which records share a batch. Needs neither torch nor a model."""

from collections.abc import Iterator, Sequence


def plan_batches(lengths: Sequence[int], rows: int, token_budget: int | None = None) -> Iterator[list[int]]:
    """Batches of positions, longest first: rows of like length waste no padding, and the largest batch comes first,
    when a lack of memory costs least.

    Args:
        lengths: tokens of each record: prompt, media and the longest response.
        rows: the most of a batch.
        token_budget: the most of rows times their longest length; a record over it is a batch of its own.

    Returns:
        Every position once; of equal lengths, in their order.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        over = batch and token_budget is not None and (len(batch) + 1) * lengths[batch[0]] > token_budget
        if len(batch) == rows or over:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
