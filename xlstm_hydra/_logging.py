"""The logger of the package, and the layout of its lines."""

import logging

log = logging.getLogger("xlstm_hydra")
"""What a run reports on the terminal and in its log file."""

FACT_INDENT = 9
"""Column of the text in the aligned blocks at the start and at the end of a run."""


def log_fact(key: str, text: str) -> None:
    """Log one line of an aligned block. On a terminal, a long text is wrapped at words, below its own start.

    Args:
        key: at most 8 characters. Empty: the line continues the previous one.
        text: the text beside it.
    """
    log.info("%-*s%s", FACT_INDENT, key, text, extra={"indent": FACT_INDENT})
