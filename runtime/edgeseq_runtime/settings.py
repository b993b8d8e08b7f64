"""Checks of what a caller may set."""

from numbers import Integral

from edgeseq_runtime.errors import InputError


def check_whole_number(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """Refuse what is no whole number, or out of range.

    Args:
        name: What messages call it.
        value: What was given.
        lowest: Least value.
        highest: Greatest value; None: there is none.

    Raises:
        InputError: It is refused.
    """
    expected = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}, expected a whole number, {expected}")
    if int(value) < lowest or (highest is not None and int(value) > highest):
        raise InputError(f"{name} is {value}, expected {expected}")
