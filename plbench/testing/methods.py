"""All checks of a method and its variants."""

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
    """Return the subjects of `check_method`: the given parameters, or the defaults and every variant."""
    kind = registry.method(method) if isinstance(method, str) else method
    values = declared.literal_variants(kind) if params is None else [dict(params)]
    return [Subject(kind, chosen, registry) for chosen in values]


def method_findings(subject: Subject) -> Iterator[Finding]:
    """Yield findings one by one. If the method cannot be built, the remaining checks are skipped."""
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    import timm.utils.model_ema  # noqa: F401  (takes seconds, which would count for the first check)

    for check in CHECKS[bool(subject.values) :]:  # the declarations of a variant's method were already checked
        finding = check.finding(subject.label, subject)
        yield finding
        if check in (declared.check_ranges, declared.check_built) and finding.passed is False:
            return  # everything else would fail, too


def check_method(
    method: type[Method] | str, *, params: Mapping[str, Any] | None = None, registry: Registry | None = None
) -> None:
    """Run all checks on a method, for use in your own tests.

    Args:
        method: the class, or the name of an installed one.
        params: parameters that differ from their defaults. If omitted, the checks cover the defaults, all other values
            of parameters with a few named values, and the method's declared variants.
        registry: registry of the methods of its stages; default: the installed ones.

    Raises:
        CheckFailed: an AssertionError with expected and observed behaviour and the smallest input for each failure.

    Examples:
        >>> check_method("ce-negative")  # doctest: +SKIP
    """
    known = Registry.discover() if registry is None else registry
    raise_failed(finding for subject in subjects(method, known, params) for finding in method_findings(subject))


def check_methods(
    names: Sequence[str], registry: Registry, params: Mapping[str, Any] | None, reporter: Reporter
) -> list[Finding]:
    """Return all findings on some methods, and report progress.

    Raises:
        PlbenchError: if there is no such method or parameter.
    """
    torch.set_num_threads(1)  # small tensors are slower with more
    chosen = [subject for name in names for subject in subjects(name, registry, params)]
    for subject in chosen if params is not None else ():
        validate_params(subject.kind, subject.values)  # a mistyped name is not a finding on the method
    findings: list[Finding] = []
    with pair_at_hand(), reporter.task(f"Checking {', '.join(names)}") as report:
        for number, subject in enumerate(chosen):
            report(number * len(CHECKS), len(chosen) * len(CHECKS))
            for done, finding in enumerate(method_findings(subject), 1):
                findings.append(finding)
                report(number * len(CHECKS) + done, len(chosen) * len(CHECKS))
        report(len(chosen) * len(CHECKS), len(chosen) * len(CHECKS))
    return findings
