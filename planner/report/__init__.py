"""The report: a page that a decision-maker can read, and files that a program can read."""

from planner.report.writing import write_report

__all__ = ["write_report"]
