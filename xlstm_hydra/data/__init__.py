"""Corpora of training and validation examples, and batches of these examples."""

from ._batches import Batches as Batches
from ._batches import spread_batches as spread_batches
from ._batches import train_batches as train_batches
from ._corpus import SEPARATOR as SEPARATOR
from ._corpus import Corpus as Corpus
from ._corpus import Example as Example
from ._corpus import Source as Source
from ._corpus import open_corpus as open_corpus
from ._corpus import open_whole_corpus as open_whole_corpus
