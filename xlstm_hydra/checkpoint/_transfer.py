"""Import and export of checkpoints: parameters and config, without the optimizer state."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import traverse_util

from xlstm_hydra.configs import (
    ConfigDict,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    StdlibDataConfig,
    SyntheticDataConfig,
    TrainerConfig,
    resolve_classes,
)
from xlstm_hydra.configs.run import BYTES
from xlstm_hydra.formats import FORMAT
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import (
    FOLDER,
    MARK,
    Record,
    attributed_to,
    provenance,
    record_of,
    starting_groups,
    step_of,
    write_manifest,
    write_metadata,
)

from ._faults import SaveError, listening, saving, system_error
from ._hugging_face import CONFIG, is_hugging_face, read_config, write_config, written_arrays
from ._integrity import verified
from ._leaves import write_safetensors
from ._parameters import convert, find_weights, open_leaves, recorded_model
from ._parts import BLOCKS, outer_and_block_parameters, parameters_of


def import_checkpoint(
    source: str, out: str | Path, form: str | None = None, key: str = "RUN", *, lenient: bool = False
) -> Path:
    """Import an xlstm-jax checkpoint or a Hugging Face xLSTM as a checkpoint of this package, with the same step.

    The new checkpoint contains parameters and config. A run that continues from it starts with a new optimizer state,
    and at the beginning of the data. All parameters are in host memory during the import.

    Args:
        source: `RUN` or `RUN@STEP` of xlstm-jax, or a Hugging Face folder.
        out: the run folder to write, which must be new or empty.
        form: the required format of the source, `xlstm_jax` or `hf`. None: either format.
        key: name of the option or argument with the source, for messages.
        lenient: ignore unknown fields of the metadata, with a warning.

    Returns:
        The path of the new checkpoint.

    Raises:
        ConfigError: the source cannot be read, its parameters do not match its config, or `out` is not a new folder.
    """
    folder, out = find_weights(source, key), _new_folder(out)
    with verified(folder, key, "params", "metadata"), attributed_to(key, folder):
        record = None if is_hugging_face(folder) else record_of(folder, key, lenient=lenient)
        model = read_config(folder, lenient=lenient) if record is None else record.model
        run, step, origin = _hugging_face_run(folder, model) if record is None else _recorded_run(folder, record)
        if form not in (None, origin["writer"]):
            raise ConfigError([Problem({}, f"expected a checkpoint in the format {form}, got {origin['writer']}")])
        model = resolve_classes(run.model)
        shapes = {parameter.path: parameter.shape for parameter in parameters_of(model)}
        params = dict(convert(open_leaves(folder), model, shapes))
    listed = {path: {"shape": list(shape), "dtype": "float32"} for path, shape in shapes.items()}
    metadata = write_metadata(run, **provenance(), parameters=listed, imported=origin)
    tree = traverse_util.unflatten_dict(params, sep=".")
    items = {"params": ocp.args.StandardSave(tree), "metadata": ocp.args.JsonSave(metadata)}  # pyright: ignore[reportCallIssue]
    with _written_whole(out) as unfinished, saving(step, unfinished / FOLDER), listening():
        with ocp.CheckpointManager(unfinished / FOLDER) as manager:
            manager.save(step, args=ocp.args.Composite(**items), custom_metadata=MARK)
            manager.wait_until_finished()
        write_manifest(unfinished / FOLDER / str(step))
    return out / FOLDER / str(step)


def _hugging_face_run(folder: Path, model: ModelConfig) -> tuple[RunConfig, int, dict[str, Any]]:
    """Return a run for a Hugging Face model, the step (0), and the origin to record in the metadata."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return _run({"model": model}, 0), 0, {"checkpoint": str(folder), "writer": "hf", "metadata": content}


def _recorded_run(folder: Path, record: Record) -> tuple[RunConfig, int, dict[str, Any]]:
    """Return a run for a checkpoint of another program, the step, and the origin to record in the metadata."""
    if record.writer == FORMAT:
        raise ConfigError([Problem({}, "is already an xlstm-hydra checkpoint")])
    groups, notes = starting_groups(record)
    origin = {"checkpoint": str(folder), "writer": record.writer, "metadata": record.content}
    return _run(groups, step_of(folder)), step_of(folder), origin | {"notes": [*record.notes, *notes]}


def _run(groups: Mapping[str, ConfigDict], step: int) -> RunConfig:
    """Return a complete run with the recorded config groups. The layout and the data are not imported; they get valid
    defaults."""
    known: dict[str, Any] = {name: config for name, config in groups.items() if name != "parallel"}
    model = replace(known["model"], parallel=ParallelConfig())
    vocab, context = model.model_config.vocab_size, model.model_config.context_length
    data = StdlibDataConfig() if vocab >= BYTES else SyntheticDataConfig(motif_length=max(1, context // 2))
    trainer, scheduler = known.get("trainer", TrainerConfig()), known.get("scheduler")
    ramps = 0 if scheduler is None else scheduler.warmup_steps + scheduler.cooldown_steps
    trainer = replace(trainer, max_steps=max(trainer.max_steps, step, ramps))
    return RunConfig(**known | {"model": model, "data": data, "trainer": trainer})


def export_checkpoint(
    source: str, out: str | Path, key: str = "RUN", *, one_document_per_row: bool = False, lenient: bool = False
) -> Path:
    """Export a checkpoint of an mLSTMv1 model for `transformers.xLSTMForCausalLM`, without a tokenizer.

    At most 4 GiB of arrays are in memory at a time.

    Args:
        source: `RUN` or `RUN@STEP`, of this package or of xlstm-jax.
        out: the folder to write, which must be new or empty.
        key: name of the option or argument with the source, for messages.
        one_document_per_row: allow a model with `reset_at_document_boundaries`. The exported model does not reset its
            state between the documents of a row.
        lenient: ignore unknown fields of the metadata, with a warning.

    Returns:
        The absolute path of `out`.

    Raises:
        ConfigError: the checkpoint cannot be read, or Hugging Face's xLSTM does not support the model. The error lists
        every unsupported field.
    """
    folder, out = find_weights(source, key), _new_folder(out)
    model = resolve_classes(recorded_model(folder, key, lenient=lenient))
    content = write_config(model, one_document_per_row=one_document_per_row)
    outer, block = outer_and_block_parameters(model)
    stacked = {*(parameter.path for parameter in outer), *(f"{BLOCKS}.{parameter.path}" for parameter in block)}
    with _written_whole(out) as unfinished:
        with verified(folder, key, "params", "metadata"), attributed_to(key, folder):
            arrays = convert(open_leaves(folder), model, stacked)
            write_safetensors(unfinished, written_arrays(model, arrays))
        (unfinished / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return out


def _new_folder(out: str | Path) -> Path:
    out = Path(out).expanduser().absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                [Problem({"OUT": str(out)}, "already exists and is not an empty folder", "Choose another folder.")]
            )
    except OSError as error:
        raise _unwritable(out, error) from error
    return out


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """Provide a temporary folder that is renamed to `out` once everything is written."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield unfinished
        if out.is_dir():
            out.rmdir()  # `_new_folder` has checked that it is empty
        unfinished.rename(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        for _ in range(20):  # an Orbax thread may still be writing to it
            shutil.rmtree(unfinished, ignore_errors=True)
            if not unfinished.exists():
                break
            time.sleep(0.1)


def _unwritable(out: Path, error: OSError) -> ConfigError:
    if isinstance(error, SaveError):  # its message names the temporary folder
        error = system_error(error.__cause__) or error
    return ConfigError([Problem({"OUT": str(out)}, f"cannot be written: {error}", "Choose another folder.")])
