import weakref

import pytest

from moco_jax.parallel.pipeline import IN_FLIGHT, pipelined


class Result:
    """A fake result on a device; unlike an int, it can be referenced weakly."""

    def __init__(self, number: int):
        self.number = number


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("in_flight", [0, 1, 2, 5])
def test_all_items_come_in_order(length, in_flight):
    assert list(pipelined(range(length), in_flight)) == list(range(length))


@pytest.mark.parametrize("in_flight", [0, 1, IN_FLIGHT])
def test_an_item_comes_after_later_ones_are_dispatched(in_flight):
    dispatched = []

    def dispatch():
        for number in range(6):
            dispatched.append(number)
            yield number

    seen = [len(dispatched) - number for number in pipelined(dispatch(), in_flight)]
    assert seen == [in_flight + 1] * (6 - in_flight) + list(range(in_flight, 0, -1))


def test_results_on_the_host_free_the_device_before_the_next_dispatch():
    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    most = 0

    def dispatch():
        nonlocal most
        for number in range(6):
            result = Result(number)
            alive.add(result)
            most = max(most, len(alive))
            yield result
            del result

    numbers = list(map(lambda result: result.number, pipelined(dispatch())))
    assert numbers == list(range(6))
    assert most == IN_FLIGHT + 1
    assert not alive


def test_an_error_in_dispatch_is_raised():
    def dispatch():
        yield 0
        raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        list(pipelined(dispatch()))


def test_dropping_the_iterator_closes_the_dispatching_generator():
    closed = []

    def dispatch():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    results = pipelined(dispatch())
    next(iter(results))
    del results
    assert closed
