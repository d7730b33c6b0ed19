"""The report of a run.

`write_report(workdir)` turns a run's numbers into plots and one self-contained HTML file.
"""

from memjax.experiment.report.page import write_report
from memjax.experiment.report.run import ReportError

__all__ = ["ReportError", "write_report"]
