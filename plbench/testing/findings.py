"""Findings of checks: expected and observed behaviour, and the smallest input that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plbench.errors import PlbenchError


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        of: what was checked, such as "selective" or "selective mode=prior".
        check: name of the check, such as "finite loss".
        passed: None if the check does not apply; `seen` then says why.
        warning: something to look at although the check passed.
        smallest: the smallest input found that still fails.
    """

    of: str
    check: str
    passed: bool | None
    expected: str = ""
    seen: str = ""
    smallest: str = ""
    seconds: float = 0.0
    warning: str = ""

    def explained(self) -> str:
        """Return the failure as readable lines."""
        text = f"{self.of}: {self.check}\n  expected: {self.expected}\n  seen:     {self.seen}"
        return text + (f"\n  smallest input that fails: {self.smallest}" if self.smallest else "")


def explanations(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield readable failures. Checks with the same observation are merged."""
    by_sight: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.passed is False:
            by_sight.setdefault((finding.of, finding.seen), []).append(finding)
    for first, *others in by_sight.values():
        same = f"\n  the same in: {', '.join(other.check for other in others)}" if others else ""
        yield first.explained() + same


class CheckFailed(AssertionError):
    """Checks failed; the message explains each.

    Attributes:
        findings: those that failed.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n" + "\n".join(explanations(findings)))


class Mismatch(Exception):
    """Raised by a failed check: observation, input, and what was expected if not the check's own."""

    def __init__(self, seen: str, *, expected: str = "", smallest: str = "") -> None:
        super().__init__(seen)
        self.seen, self.expected, self.smallest = seen, expected, smallest


class Warned(Exception):
    """Raised by a check that passed but found something to look at."""


class NotApplicable(Exception):
    """Raised by a check that does not apply."""


@dataclass(frozen=True)
class Check:
    """One check of a method or a dataset, with the expected behaviour.

    Attributes:
        run: raises `Mismatch` on failure, or `Warned` or `NotApplicable`.
    """

    name: str
    expected: str
    run: Callable[[Any], None]

    def finding(self, of: str, subject: Any) -> Finding:
        """Run the check and turn whatever it raises into a finding."""
        start = time.perf_counter()
        passed: bool | None = True
        expected, seen, smallest, warning = self.expected, "", "", ""
        try:
            self.run(subject)
        except NotApplicable as reason:
            passed, seen = None, str(reason)
        except Warned as found:
            warning = str(found)
        except Mismatch as mismatch:
            passed, seen, smallest = False, mismatch.seen, mismatch.smallest
            expected = mismatch.expected or self.expected
        except Exception as error:  # third-party code may raise anything
            passed, seen = False, in_words(error)
        return Finding(of, self.name, passed, expected, seen, smallest, time.perf_counter() - start, warning)


def check(name: str, expected: str) -> Callable[[Callable[[Any], None]], Check]:
    """Turn the decorated function into a check; it raises as described in `Check`."""
    return lambda run: Check(name, expected, run)


def in_words(error: Exception) -> str:
    """Return an error's message: plbench's without the hint at a command, others with their type."""
    return error.what if isinstance(error, PlbenchError) else f"{type(error).__name__}: {error}"


def raise_failed(findings: Iterable[Finding]) -> None:
    """Raise if any check failed.

    Raises:
        CheckFailed: with all that failed.
    """
    failed = [finding for finding in findings if finding.passed is False]
    if failed:
        raise CheckFailed(failed)
