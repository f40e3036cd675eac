"""TODO."""

from tests.soak.common import Report


def run(report: Report) -> None:
    """TODO."""
