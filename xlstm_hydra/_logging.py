"""The logger of the package."""

import logging

log = logging.getLogger("xlstm_hydra")
"""What a run reports on the terminal and in its log file."""
