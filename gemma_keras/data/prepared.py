"""What readers of prepared data have to know before they open it."""

import json
from pathlib import Path
from typing import Any

FORMAT = 4
"""Raised whenever readers need something that older prepared data lacks; such data is prepared again, with the same rows."""

ROWS_FILE = "data-00000-of-00001.arrow"


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the prepared data in `folder`, whatever its format.

    Raises:
        OSError: there is none.
        ValueError: it is no report.
    """
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        raise ValueError("report.json holds no report")
    return report


def is_current(report: dict[str, Any]) -> bool:
    """Whether the data beside a report is of this version's format."""
    return report.get("format") == FORMAT
