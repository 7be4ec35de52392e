"""Using the parameters of a checkpoint: its loss on a corpus, and the texts that it continues."""

from ._evaluate import evaluate as evaluate
from ._generate import generate as generate
from ._sample import draw as draw
