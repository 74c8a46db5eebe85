"""Reports: all that was measured as one page that opens anywhere, or as Markdown."""

from __future__ import annotations

from rankscope.reporting.measuring import SKIPPABLE, Report, measure, report
from rankscope.reporting.saving import write_result

__all__ = ["SKIPPABLE", "Report", "measure", "report", "write_result"]
