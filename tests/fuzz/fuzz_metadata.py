"""Fuzzing the reader of metadata with atheris, which looks for inputs that reach new code.

    pip install atheris
    python tests/fuzz/fuzz_metadata.py -max_total_time=300

Any error but `MetadataError`, any import, and any input that takes longer than ten seconds ends it. The tests run it
for a few seconds where atheris is installed.
"""

import json
import pathlib
import random
import sys
import tempfile

import atheris

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

with atheris.instrument_imports(include=["xlstm_hydra.formats", "xlstm_hydra.codec", "xlstm_hydra.configs"]):
    from xlstm_hydra.metadata import MetadataError, read_record

from fuzz.mutations import NAMES, SEEDS, VALUES, damage, paths

LOADED = set(sys.modules)
KNOWN = {*sys.stdlib_module_names, "atheris"}


def one_input(data: bytes) -> None:
    """Read bytes as metadata, strictly and leniently."""
    for lenient in (False, True):
        try:
            read_record(data, lenient=lenient)
        except MetadataError as error:
            assert error.problems and str(error)
    imported = {name for name in set(sys.modules) - LOADED if name.partition(".")[0] not in KNOWN}
    assert not imported, imported


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Damage a value of what is JSON, for most would be lost by damaging bytes; and bytes now and then."""
    rng = random.Random(seed)
    try:
        content = json.loads(data)
        choices = list(paths(content))
    except (ValueError, RecursionError):
        choices = []
    if not choices or rng.random() < 0.3:
        return atheris.Mutate(data, max_size)
    path, kind = rng.choice(choices), rng.choice(("replace", "replace", "remove", "add"))
    content = damage(content, path, kind, rng.choice(VALUES), rng.choice(NAMES))
    return json.dumps(content).encode()[:max_size]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS):
            (pathlib.Path(folder) / str(number)).write_text(seed, encoding="utf-8")
        arguments = [*sys.argv, "-max_len=40000", "-timeout=10", folder]
        atheris.Setup(arguments, one_input, custom_mutator=mutate)
        atheris.Fuzz()
