"""What `plbench methods check` and `plbench data check` print: a table of checks, then each failure in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.text import Text

from plbench.cli.display.tables import new_table, output
from plbench.cli.wording import in_options
from plbench.testing.findings import Finding, explanations


def with_options(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings whose texts name settings as options of a command."""
    return [
        replace(
            finding,
            expected=in_options(finding.expected),
            seen=in_options(finding.seen),
            smallest=in_options(finding.smallest),
            warning=in_options(finding.warning),
        )
        for finding in findings
    ]


def print_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print one row a check, over all that was checked; then what failed, on the smallest input."""
    console = output()
    console.print(Text(title, style="bold"))
    table = new_table("", "check", "of", "took", "note", right=("took",))
    for check in dict.fromkeys(finding.check for finding in findings):
        rows = [finding for finding in findings if finding.check == check]
        failed = [finding for finding in rows if finding.passed is False]
        passed = [finding for finding in rows if finding.passed]
        warned = [finding.warning for finding in passed if finding.warning]
        mark = "FAILED" if failed else "warning" if warned else "ok" if passed else "–"
        note = "" if failed else warned[0] if warned else "" if passed else rows[0].seen
        count = f"{len(passed)} of {len(rows)}" if len(rows) > 1 else ""
        table.add_row(mark, check, count, f"{sum(row.seconds for row in rows):.1f} s", Text(note))
    console.print(table)
    for text in explanations(findings):
        console.print()
        console.print(Text(text), soft_wrap=True)
    console.print()
    console.print(Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    """Return how many checks passed, in a sentence."""
    failed = sum(finding.passed is False for finding in findings)
    passed = sum(finding.passed is True for finding in findings)
    took = sum(finding.seconds for finding in findings)
    if failed:
        return f"{failed} of {failed + passed} checks failed ({took:.1f} s)"
    return f"all {passed} checks passed ({took:.1f} s)"
