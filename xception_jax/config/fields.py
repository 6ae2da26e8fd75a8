"""The fields of a config: type, bounds, and durations with a unit."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from xception_jax.errors import nearest

_LONGEST = 10**15  # of any unit
EXAMPLES = "a number and a unit, as '90 epochs', '0.5 epochs', '1000 steps' or '3000000 examples'"
_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples"}


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit: `90 epochs`, `1000 steps`."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads `NUMBER UNIT`; the unit is steps, epochs or examples, singular or plural.

        Raises:
          ValueError: it is invalid. The message continues a sentence "NAME is".
        """
        number, _, unit = text.strip().partition(" ")
        unit = _UNITS.get(unit.strip(), unit.strip())
        try:
            # Check it as a float first: 1e999999999 as a fraction would use all memory.
            finite = "/" in number or math.isfinite(float(number))
            amount = Fraction(number) if finite else Fraction(-1)
        except (ValueError, ZeroDivisionError):
            amount = Fraction(-1)
        if not 0 <= amount <= _LONGEST or unit not in _UNITS.values():
            raise ValueError(f"{text!r}, which is not a duration; it takes {EXAMPLES}")
        return cls(amount, unit)

    def examples(self, *, batch_size: int, epoch: int) -> int:
        """The duration in examples, rounded up, for the sizes of a batch and an epoch."""
        factor = {"steps": batch_size, "epochs": epoch, "examples": 1}[self.unit]
        return -(-self.amount * factor // 1)

    def steps(self, *, batch_size: int, epoch: int) -> int:
        """The duration in steps, rounded up."""
        return -(-self.examples(batch_size=batch_size, epoch=epoch) // batch_size)

    def passed(self, steps: int, *, batch_size: int, epoch: int) -> int:
        """How many times the duration has passed after a number of steps, without rounding."""
        return steps * batch_size // self.examples(batch_size=batch_size, epoch=epoch)


@dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: the default value; None for a field that can be unset.
      help: its meaning, with the unit.
      kind: its type.
      low: inclusive lower bound of a number, or of every number of a tuple.
      high: inclusive upper bound.
      choices: the only allowed values.
      fractions: whether numbers can have fractions.
      length: the number of elements of a tuple; None: any.
      texts: whether a tuple's elements are strings instead of numbers.
      duration: whether it is a string for `Duration.parse`, or `auto` if that is the default.
      harmless: whether it may change in a started run, see `config.may_change`.
    """

    default: Any
    help: str
    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    fractions: bool = True
    length: int | None = None
    texts: bool = False
    duration: bool = False
    harmless: bool = False

    @property
    def takes(self) -> str:
        """The allowed values, for messages."""
        whole = "" if self.fractions else " of whole numbers"
        kinds = {
            int: "a whole number",
            float: "a number",
            bool: "True or False",
            str: EXAMPLES + (" (or auto)" if self.default == "auto" else "")
            if self.duration
            else "text",
            tuple: "a tuple of text" if self.texts else f"a tuple{whole}, as (1, 2)",
        }
        taken = f"one of: {', '.join(self.choices)}" if self.choices else kinds[self.kind]
        return f"{taken}, or None" if self.default is None else taken

    def check(self, value: Any) -> str | None:
        """What is wrong with a value, or None. The message continues a sentence "NAME"."""
        if value is None:
            return None if self.default is None else f"is None; it takes {self.takes}"
        if self.kind is float and type(value) is int:
            value = float(value)
        if self.kind is tuple and isinstance(value, list):
            value = tuple(value)
        if type(value).__name__ != self.kind.__name__:
            return f"is {value!r}, a {type(value).__name__}; it takes {self.takes}"
        if self.choices and value not in self.choices:
            hint = nearest(value, self.choices) or ";"
            return f"is {value!r}{hint} It takes: {', '.join(self.choices)}"
        if self.duration and not value == self.default == "auto":
            try:
                Duration.parse(value)
            except ValueError as error:
                return f"is {error}"
        if self.texts:
            numbers = [part for part in value if not isinstance(part, str)]
            return f"is {value!r}; it takes a tuple of text" if numbers else None
        if self.length is not None and len(value) != self.length:
            return f"is {value!r}; it takes {self.length} numbers"
        if self.kind in (int, float, tuple):
            return self._check_bounds(value)
        return None

    def _check_bounds(self, value: Any) -> str | None:
        for number in value if self.kind is tuple else (value,):
            allowed = (int, float) if self.fractions else (int,)
            if type(number) not in allowed:
                return f"is {value!r}; it takes {'' if self.fractions else 'whole '}numbers"
            if not math.isfinite(number):
                return f"is {value}; it takes finite numbers"
            below = self.low is not None and not number >= self.low
            above = self.high is not None and not number <= self.high
            if below or above:
                low = f"at least {self.low}" if self.low is not None else ""
                high = f"at most {self.high}" if self.high is not None else ""
                return f"is {value}; it takes {' and '.join(filter(None, (low, high)))}"
        return None
