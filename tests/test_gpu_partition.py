"""Partitions of a GPU, with torch's green contexts and streams replaced: what runs on them needs a GPU."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.cuda import green_contexts

from humanomni.gpu_partition import partition

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def green(monkeypatch: pytest.MonkeyPatch) -> Any:
    partition.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    contexts = mock.Mock()
    contexts.create.side_effect = lambda **_: mock.Mock()
    monkeypatch.setattr(green_contexts, "GreenContext", contexts)
    yield contexts
    partition.cache_clear()


def test_who_asks_again_works_on_the_same_stream(green: Any) -> None:
    """Otherwise each request to the demo would leave behind the memory that it took."""
    first, other = partition(DEVICE, 0.6), partition(DEVICE, 0.7)
    assert partition(DEVICE, 0.6).stream is first.stream is not other.stream
    assert green.create.call_args_list == [
        mock.call(num_sms=80, device_id=0),
        mock.call(num_sms=96, device_id=0),
    ]


def test_a_gpu_that_cannot_be_parted_is_used_whole(green: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    green.create.side_effect = RuntimeError("the driver is too old")
    streams = mock.Mock()
    monkeypatch.setattr(torch.cuda, "Stream", streams)
    assert partition(DEVICE, 0.6).stream is streams.return_value
    streams.assert_called_once_with(DEVICE)
