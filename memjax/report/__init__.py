"""The page that shows what a run found: `write_report(workdir)` turns its numbers into plots and one self-contained HTML file."""

from memjax.report.page import write_report
from memjax.report.run import ReportError

__all__ = ["ReportError", "write_report"]
