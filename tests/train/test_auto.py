"""`parallel=auto`: the run trains with the layout that was chosen, and is one with that layout ever after."""

import json

import pytest
from omegaconf import OmegaConf

from tests.command import run_command
