"""The logger of the package, and the layout of log lines."""

import logging

log = logging.getLogger("xlstm_hydra")
"""Logger for everything that a run reports on the terminal and in the log file."""

FACT_INDENT = 9
"""Column where the text starts in the aligned blocks that are logged at the start and at the end of a run."""


def log_fact(key: str, text: str) -> None:
    """Log one line of an aligned block. On a terminal, a long text is wrapped between words, and the following lines
    are indented to the column of the text.

    Args:
        key: at most 8 characters. Empty: the line continues the previous line.
        text: printed to the right of the key.
    """
    log.info("%-*s%s", FACT_INDENT, key, text, extra={"indent": FACT_INDENT})
