"""All checks of a method, with its variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from plbench.method import Method
from plbench.progress import Reporter
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.testing import declaration_checks as declared
from plbench.testing import loss_checks as called
from plbench.testing import training_checks as trained
from plbench.testing.findings import Check, Finding, raise_failed
from plbench.testing.gradient_check import check_gradient
from plbench.testing.pair import pair_at_hand
from plbench.testing.small_job import Subject
from plbench.testing.stack_check import check_stack

CHECKS: tuple[Check, ...] = (
    declared.check_words,
    declared.check_ranges,
    declared.check_built,
    called.check_finite,
    called.check_untouched,
    called.check_scores,
    check_gradient,
    check_stack,
    called.check_generators,
    trained.check_falls,
    trained.check_same_bits,
    trained.check_other_truth,
    trained.check_resume,
    trained.check_two_processes,
    trained.check_half_precision,
    trained.check_on_images,
    trained.check_scored,
)


def subjects(method: type[Method] | str, registry: Registry, params: Mapping[str, Any] | None = None) -> list[Subject]:
    """Return what `check_method` looks at: the parameters given, or the defaults and every variant."""
    kind = registry.method(method) if isinstance(method, str) else method
    values = declared.literal_variants(kind) if params is None else [dict(params)]
    return [Subject(kind, chosen, registry) for chosen in values]


def method_findings(subject: Subject) -> Iterator[Finding]:
    """Yield what checks find, one after another. A method that cannot be built is not tried any further."""
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    import timm.utils.model_ema  # noqa: F401  (seconds that are no check's)

    for check in CHECKS[bool(subject.values) :]:  # a variant is of a method that was asked for its words already
        finding = check.finding(subject.label, subject)
        yield finding
        if check in (declared.check_ranges, declared.check_built) and finding.passed is False:
            return  # all else would fail, too


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


def check_methods(
    names: Sequence[str], registry: Registry, params: Mapping[str, Any] | None, reporter: Reporter
) -> list[Finding]:
    """Return all findings on some methods, and report how far it is.

    Raises:
        PlbenchError: if there is no such method, or it takes no such parameter.
    """
    torch.set_num_threads(1)  # small tensors are slower with more
    chosen = [subject for name in names for subject in subjects(name, registry, params)]
    for subject in chosen if params is not None else ():
        validate_params(subject.kind, subject.values)  # a mistyped name is no fault of the method
    findings: list[Finding] = []
    with pair_at_hand(), reporter.task(f"Checking {', '.join(names)}") as report:
        for number, subject in enumerate(chosen):
            report(number * len(CHECKS), len(chosen) * len(CHECKS))
            for done, finding in enumerate(method_findings(subject), 1):
                findings.append(finding)
                report(number * len(CHECKS) + done, len(chosen) * len(CHECKS))
        report(len(chosen) * len(CHECKS), len(chosen) * len(CHECKS))
    return findings
