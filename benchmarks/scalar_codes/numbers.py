"""Numbers of libraries whose functions are no methods: JAX, CasADi."""

from __future__ import annotations

from typing import Any


class Number:
    """A number that has what the scalar codes call on theirs."""

    def __init__(self, library: Any, value: Any) -> None:
        """Keep the value, and the module with its functions."""
        self.library, self.value = library, value

    def _of(self, value: Any) -> Number:
        return Number(self.library, value)

    def __add__(self, other: Any) -> Number:
        return self._of(self.value + _value(other))

    def __sub__(self, other: Any) -> Number:
        return self._of(self.value - _value(other))

    def __rsub__(self, other: Any) -> Number:
        return self._of(_value(other) - self.value)

    def __mul__(self, other: Any) -> Number:
        return self._of(self.value * _value(other))

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Number:
        return self._of(self.value / _value(other))

    def __pow__(self, exponent: int) -> Number:
        return self._of(self.value**exponent)

    def __neg__(self) -> Number:
        return self._of(-self.value)

    def sqrt(self) -> Number:
        return self._of(self.library.sqrt(self.value))

    def rsqrt(self) -> Number:
        return self._of(1 / self.library.sqrt(self.value))

    def abs(self) -> Number:
        return self._of(self.library.fabs(self.value))

    def sin(self) -> Number:
        return self._of(self.library.sin(self.value))

    def cos(self) -> Number:
        return self._of(self.library.cos(self.value))

    def atan2(self, other: Number) -> Number:
        return self._of(self.library.arctan2(self.value, other.value))


def _value(number: Any) -> Any:
    return number.value if isinstance(number, Number) else number
