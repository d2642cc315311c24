"""Output of `plbench methods check` and `plbench data check`: a table of checks, then each failure in detail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import typer

from plbench.cli.display.tables import print_lines, print_rows
from plbench.cli.options import echo, emit
from plbench.cli.wording import in_options
from plbench.testing.findings import Finding, explanations


def report(title: str, found: Iterable[Finding], as_json: bool) -> None:
    """Print findings, with settings written as command-line options, and exit with 1 if any failed."""
    findings = []
    for finding in found:
        names = ("expected", "seen", "smallest", "warning")
        texts: dict[str, Any] = {name: in_options(getattr(finding, name)) for name in names}
        findings.append(replace(finding, **texts))
    emit([asdict(finding) for finding in findings], as_json, lambda: _print(title, findings))
    if any(finding.passed is False for finding in findings):
        raise typer.Exit(1)


def _print(title: str, findings: Sequence[Finding]) -> None:
    """Print one row per check, over all subjects; then failures on the smallest input; then a summary."""
    rows: list[dict[str, str]] = []
    for check in dict.fromkeys(finding.check for finding in findings):
        own = [finding for finding in findings if finding.check == check]
        passed = [finding for finding in own if finding.passed]
        warned = [finding.warning for finding in passed if finding.warning]
        if any(finding.passed is False for finding in own):
            mark, note = "FAILED", ""
        elif warned:
            mark, note = "warning", warned[0]
        else:
            mark, note = ("ok", "") if passed else ("–", own[0].seen)
        count = f"{len(passed)} of {len(own)}" if len(own) > 1 else ""
        took = f"{sum(finding.seconds for finding in own):.1f} s"
        rows.append({"": mark, "check": check, "of": count, "took": took, "note": note})
    print_rows(title, rows, right=("took",))
    for text in explanations(findings):
        echo(f"\n{text}")
    failed, passed_all = (sum(finding.passed is value for finding in findings) for value in (False, True))
    took = f"({sum(finding.seconds for finding in findings):.1f} s)"
    says = f"{failed} of {failed + passed_all} checks failed" if failed else f"all {passed_all} checks passed"
    print_lines("", f"{says} {took}")
