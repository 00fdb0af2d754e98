"""The report of a run and the comparison of runs: one self-contained HTML file each."""

from girsanov.report.card import write_card as write_card
from girsanov.report.compare import write_comparison as write_comparison
from girsanov.report.run import write_report as write_report
