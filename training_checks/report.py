"""What a check returns: findings with their severity, the figures behind them, and a table of details.

A command prints one line per finding and exits with 0 (passed), 1 (a fault was found) or, through
:func:`music_training.errors.run_command`, 2 (the check could not run).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["ok", "note", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing a check has to say: what was seen (with its figure) and what to do about it."""

    severity: Severity
    subject: str
    message: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.severity:>7}  {self.subject}: {self.message}" + (f" -> {self.todo}" if self.todo else "")


@dataclass
class Report:
    """The outcome of a check: findings in order, figures by name, and rows of details."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, severity: Severity, subject: str, message: str, todo: str = "") -> None:
        """Append a finding."""
        self.findings.append(Finding(severity, subject, message, todo))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        """The report that :meth:`json` wrote."""
        findings = [Finding(**finding) for finding in content["findings"]]
        return cls(content["title"], findings, content["figures"], content["rows"])

    @property
    def passed(self) -> bool:
        """Whether no finding is a fault."""
        return all(finding.severity != "fault" for finding in self.findings)

    def json(self) -> str:
        """The whole report as JSON."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=2, ensure_ascii=False)

    def table(self):
        """The rows as a pandas table."""
        import pandas

        return pandas.DataFrame(self.rows)

    def print(self, as_json: bool = False) -> int:
        """Print the findings (or everything as JSON) and return the exit code: 0 passed, 1 a fault."""
        print(self.json() if as_json else "\n".join([self.title, *map(str, self.findings)]))
        return 0 if self.passed else 1

    def _repr_html_(self) -> str:
        """A notebook shows the findings as a table."""
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(item.severity)}</td><td>{escape(item.subject)}</td>"
            f"<td style='text-align:left'>{escape(item.message)}</td><td style='text-align:left'>{escape(item.todo)}</td></tr>"
            for item in self.findings
        )
        return (
            f"<b>{escape(self.title)}</b><table><tr><th>severity</th><th>subject</th><th>finding</th><th>what to do</th></tr>{rows}</table>"
        )
