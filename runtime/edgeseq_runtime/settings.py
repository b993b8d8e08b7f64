"""Checks of what a caller may set."""

from numbers import Integral

from edgeseq_runtime.errors import InputError


def check_whole_number(name: str, value: object, lowest: int) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        name: What messages call it.
        value: What was given.
        lowest: Least value.

    Raises:
        InputError: It is refused.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}, expected a whole number, at least {lowest}")
    if int(value) < lowest:
        raise InputError(f"{name} is {value}, expected at least {lowest}")
