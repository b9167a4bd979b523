"""Events of this process in the page of the Prefect run that they belong to.

The same loggers that write the log. PREFECT_LOGGING_EXTRA_LOGGERS would do it too, but must be set before Prefect is imported, and warns
for every thread outside a run.
"""

import logging
from functools import cache

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from tasks.log import OURS


@cache
def show_events() -> None:
    """Send events of flows and tasks to the server, from now on."""
    handler = APILogHandler(logging.INFO)
    handler.addFilter(_in_a_run)
    for name in OURS:
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(handler)


def _in_a_run(_: logging.LogRecord) -> bool:
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
