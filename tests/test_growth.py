"""The measure of growth itself: it lets through what is in line, and finds what is not."""

from __future__ import annotations

from collections.abc import Callable

from testkit.growth import grows_in_line


def test_work_in_line_with_its_input_is_let_through() -> None:
    assert grows_in_line(lambda n: lambda: sum(range(n)), 50_000)


def test_work_that_grows_with_the_square_is_found() -> None:
    def square(n: int) -> Callable[[], object]:
        return lambda: [sum(range(n)) for _ in range(n)]

    assert not grows_in_line(square, 300)
