"""Evaluation of a checkpoint on a corpus, and generation of text with its parameters."""

from ._evaluate import evaluate as evaluate
from ._generate import generate as generate
from ._sample import draw as draw
