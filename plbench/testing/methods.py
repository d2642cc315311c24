"""All checks of a method, with its variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plbench.method import Method
from plbench.runs.registry import Registry
from plbench.testing.declaration_checks import BUILT, RANGES, WORDS, literal_variants
from plbench.testing.findings import Check, Finding, findings_of, raise_failed
from plbench.testing.gradient_check import GRADIENT
from plbench.testing.loss_checks import FINITE, GENERATORS, SCORES, UNTOUCHED
from plbench.testing.small_job import Subject
from plbench.testing.stack_check import STACK
from plbench.testing.training_checks import (
    FALLS,
    HALF_PRECISION,
    ON_IMAGES,
    OTHER_TRUTH,
    RESUME,
    SAME_BITS,
    SCORED,
    TWO_PROCESSES,
)

CHECKS: tuple[Check, ...] = (
    WORDS,
    RANGES,
    BUILT,
    FINITE,
    UNTOUCHED,
    SCORES,
    GRADIENT,
    STACK,
    GENERATORS,
    FALLS,
    SAME_BITS,
    OTHER_TRUTH,
    RESUME,
    TWO_PROCESSES,
    HALF_PRECISION,
    ON_IMAGES,
    SCORED,
)


def subjects(method: type[Method] | str, registry: Registry, params: Mapping[str, Any] | None = None) -> list[Subject]:
    """Return what `check_method` looks at: the parameters given, or the defaults and every variant."""
    kind = registry.method(method) if isinstance(method, str) else method
    values = literal_variants(kind) if params is None else [dict(params)]
    return [Subject(kind, chosen, registry) for chosen in values]


def checks_of(subject: Subject) -> list[Check]:
    """Return the checks that a subject goes through."""
    return [check for check in CHECKS if not (subject.values and check is WORDS)]  # asked once of a method


def method_findings(subject: Subject) -> Iterator[Finding]:
    """Yield what checks find, one after another. A method that cannot be built is not tried any further."""
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    import timm.utils.model_ema  # noqa: F401  (seconds that are no check's)

    for check in checks_of(subject):
        finding = next(findings_of(subject.label, [check], subject))
        yield finding
        if check in (RANGES, BUILT) and finding.passed is False:  # all else would fail, too
            return


def check_method(
    method: type[Method] | str, *, params: Mapping[str, Any] | None = None, registry: Registry | None = None
) -> None:
    """Put a method through every check: for a test of one's own.

    Args:
        method: the class, or the name of an installed one.
        params: parameters that are not at their defaults. Without any, the defaults are checked, every other value of
            parameters that are one of a few words, and the variants that the method declares.
        registry: where the methods of its stages are found; by default what is installed.

    Raises:
        CheckFailed: an AssertionError that says of each failure what was expected, what was seen, and on which
            smallest input.

    Examples:
        >>> check_method("ce-negative")  # doctest: +SKIP
    """
    known = Registry.discover() if registry is None else registry
    raise_failed(finding for subject in subjects(method, known, params) for finding in method_findings(subject))
