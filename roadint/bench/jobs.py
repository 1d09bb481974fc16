"""The jobs of benchmarks that go on with a saved report."""

import json
from collections.abc import Mapping
from typing import Any


def differing(job: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """The entries in which the job of a saved report is another one.

    Args:
        job: The job of this run; it is compared as JSON would give it back.
        saved: The job of the report.

    Examples:
        >>> differing({"rows": (1, 2), "epochs": 3}, {"rows": [1, 2], "tries": 1})
        ['epochs']
    """
    mine = json.loads(json.dumps(job))
    return [name for name in mine if name not in saved or saved[name] != mine[name]]
