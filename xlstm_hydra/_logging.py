"""The logger of the package."""

import logging

log = logging.getLogger("xlstm_hydra")
"""Logger of everything that a run reports on the terminal and in its log file."""
