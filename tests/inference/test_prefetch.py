"""Prefetching: a thread runs ahead, ends with its consumer, and passes its errors on."""

import threading
from collections.abc import Iterator

import pytest

from ral.inference.prefetch import PREFETCH_DEPTH, Prefetcher


def test_items_arrive_in_order_and_ahead_of_time(wait_until) -> None:
    produced: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            produced.append(number)
            yield number

    with Prefetcher(source) as items:
        first = next(items)
        assert first == 0
        wait_until(lambda: len(produced) >= PREFETCH_DEPTH + 1)
        assert list(items) == list(range(1, 10))


def test_an_error_in_the_thread_is_raised_here() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    with Prefetcher(source) as items, pytest.raises(KeyError, match="lost"):
        list(items)


def test_the_thread_ends_when_the_user_leaves_early() -> None:
    def source() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    with Prefetcher(source) as items:
        assert next(items) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
