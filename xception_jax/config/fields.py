"""What a field of a config can hold: its type, its bounds, and lengths of training with a unit."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from xception_jax.errors import nearest

_LONGEST = 10**15  # of any unit
EXAMPLES = "a number and its unit, as '90 epochs', '0.5 epochs', '1000 steps' or '3000000 examples'"
_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples"}


@dataclass(frozen=True)
class Duration:
    """A length of training in the unit that a person thinks in: `90 epochs`, `1000 steps`."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads `NUMBER UNIT`; the unit is steps, epochs or examples, singular or plural.

        Raises:
          ValueError: to follow a name and "is".
        """
        number, _, unit = text.strip().partition(" ")
        unit = _UNITS.get(unit.strip(), unit.strip())
        try:
            # As a float first: 1e999999999 as a fraction would take all memory.
            finite = "/" in number or math.isfinite(float(number))
            amount = Fraction(number) if finite else Fraction(-1)
        except (ValueError, ZeroDivisionError):
            amount = Fraction(-1)
        if not 0 <= amount <= _LONGEST or unit not in _UNITS.values():
            raise ValueError(f"{text!r}, which is no duration; it takes {EXAMPLES}")
        return cls(amount, unit)

    def examples(self, *, batch_size: int, epoch: int) -> int:
        """The duration in examples (rounded up), given the sizes of a batch and of an epoch."""
        factor = {"steps": batch_size, "epochs": epoch, "examples": 1}[self.unit]
        return -(-self.amount * factor // 1)

    def steps(self, *, batch_size: int, epoch: int) -> int:
        """The least number of steps that takes at least so many examples."""
        return -(-self.examples(batch_size=batch_size, epoch=epoch) // batch_size)

    def passed(self, steps: int, *, batch_size: int, epoch: int) -> int:
        """How often the duration is over after so many steps, with nothing lost to rounding."""
        return steps * batch_size // self.examples(batch_size=batch_size, epoch=epoch)


@dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: its value unless a config says otherwise; None for a field that may be left unset.
      help: what it means, with its unit.
      kind: its type.
      low, high: inclusive bounds of a number, or of every number of a tuple.
      choices: the only values allowed.
      fractions: numbers need not be whole.
      texts: a tuple's elements are text, not numbers.
      duration: a string that `Duration.parse` reads, or `auto` where that is the default.
      harmless: may change in a run that has begun, see `config.may_change`.
    """

    default: Any
    help: str
    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    fractions: bool = True
    texts: bool = False
    duration: bool = False
    harmless: bool = False

    @property
    def takes(self) -> str:
        """What a person may give it, for messages."""
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
        """Says what is wrong with a value, or None."""
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
