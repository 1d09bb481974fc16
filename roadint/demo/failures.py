"""The messages that visitors read when something fails; internal errors go to the log."""

import logging
from collections.abc import Sequence

from roadint.errors import RoadError

UNEXPECTED = (
    "something went wrong on the server, and was noted there: "
    "what you asked for was not at fault as far as is known"
)

_log = logging.getLogger("roadint.demo")


def message_for_visitors(error: BaseException, replace: Sequence[tuple[str, str]] = ()) -> str:
    """Turn an error into the line that a visitor reads.

    Args:
        error: The error. Only a RoadError is for visitors; any other error goes to the log.
        replace: Paths of this machine, and names that replace them.

    Returns:
        The line.
    """
    if not isinstance(error, RoadError):
        _log.error("the app failed", exc_info=error)
        return UNEXPECTED
    message = str(error)
    for path, name in replace:
        message = message.replace(path, name)
    return message
