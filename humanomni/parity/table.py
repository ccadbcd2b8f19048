"""The table of compared quantities."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One compared quantity; one that could not be compared has no difference, and a note that says why."""

    quantity: str
    difference: float | None
    tolerance: float | None
    note: str = ""

    @property
    def status(self) -> str:
        if self.difference is None or self.tolerance is None:
            return "not checked"
        return "pass" if self.difference <= self.tolerance else "FAIL"


@dataclass
class Table:
    """Rows as they come; ``context`` stands before every quantity's name."""

    rows: list[Row] = field(default_factory=list)
    context: str = ""

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.status == "FAIL"]

    def close(self, quantity: str, ours: Any, golden: Any, tolerance: float, relative: bool = False) -> None:
        """Largest difference of two arrays of one shape, absolute or relative to the golden value."""
        left, right = np.asarray(ours, dtype=np.float64), np.asarray(golden, dtype=np.float64)
        if left.shape != right.shape:
            self._add(quantity, math.inf, tolerance, f"shape {left.shape}, golden {right.shape}")
            return
        difference = np.abs(left - right) / (np.abs(right) if relative else 1.0)
        self._add(quantity, float(difference.max()), tolerance, "relative" if relative else "")

    def scaled(self, quantity: str, ours: Any, golden: Any, tolerance: float = 1e-4) -> None:
        """As :meth:`close`, with a tolerance that grows with the golden array's largest value."""
        self.close(quantity, ours, golden, tolerance * max(1.0, float(np.abs(golden).max())))

    def equal(self, quantity: str, ours: Any, golden: Any) -> None:
        """Number of places in which two sequences differ; none may."""
        different = sum(a != b for a, b in zip(ours, golden, strict=False)) + abs(len(ours) - len(golden))
        self._add(quantity, float(different), 0.0, "places that differ")

    def not_checked(self, quantity: str, reason: str) -> None:
        """A quantity of the golden data that is not compared."""
        self._add(quantity, None, None, reason)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Names what is compared inside; what goes wrong there is a failed row, and the next section follows."""
        outer, self.context = self.context, f"{self.context}{name} "
        try:
            yield
        except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            self._add("stopped", math.inf, 0.0, f"{type(error).__name__}: {error}")
        finally:
            self.context = outer

    def text(self) -> str:
        """The table for a terminal."""
        width = max((len(row.quantity) for row in self.rows), default=8)
        lines = [f"{'quantity':{width}}  {'max difference':>14}  {'tolerance':>9}  result"]
        lines += [
            f"{row.quantity:{width}}  {_number(row.difference):>14}  {_number(row.tolerance):>9}  {row.status:11} "
            f"{row.note}".rstrip()
            for row in self.rows
        ]
        counts = {status: sum(row.status == status for row in self.rows) for status in ("pass", "FAIL", "not checked")}
        lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
        return "\n".join(lines)

    def _add(self, quantity: str, difference: float | None, tolerance: float | None, note: str) -> None:
        self.rows.append(Row(self.context + quantity, difference, tolerance, note))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
