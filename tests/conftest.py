"""Eight simulated CPU devices for everyone. JAX is imported by the tests that need it, not here."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
