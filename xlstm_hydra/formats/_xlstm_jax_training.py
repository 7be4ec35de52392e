"""Read the xlstm-jax metadata of the optimizer, schedule, trainer, checkpoints and logger into plain groups.

If our configs cannot represent the recorded values of a group, the group is omitted with a note that gives the reason.
The model can still be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xlstm_hydra.problems import show

from ._table_reader import REQUIRED, Field, PlainGroup, Reading, Table, no_counterpart
from ._value_types import WrongType, anything, boolean, integer, list_of, mapping, number, optional, string

_DISPLAY = "it affects only the output"
_EPOCHS = "xlstm-hydra does not count epochs"
_MACHINE_PATH = "it is a path on the machine that ran the training"
_OURS = "it is always true in xlstm-hydra"

OPTIMIZER: Table = {
    "name": Field(kind=string),
    **{name: Field(kind=number) for name in ("beta1", "beta2", "eps", "weight_decay")},
    "nesterov": Field(kind=boolean),
    **{name: Field(kind=optional(number)) for name in ("grad_clip_norm", "grad_clip_value")},
    **{name: Field(kind=optional(list_of(string))) for name in ("weight_decay_include", "weight_decay_exclude")},
    "use_sharded_clip_norm": no_counterpart(
        boolean, True, "xlstm-hydra clips by the norm over all shards", default=True
    ),
    "alpha": no_counterpart(number, 8.0, "only AdEMAMix uses it", default=8.0),
    "beta3": no_counterpart(number, 0.9999, "only AdEMAMix uses it", default=0.9999),
}

SCHEDULER: Table = {
    "name": Field(kind=string),
    **{name: Field(kind=number) for name in ("lr", "cooldown_lr")},
    **{name: Field(kind=integer) for name in ("decay_steps", "warmup_steps", "cooldown_steps")},
    **{name: Field(kind=optional(number)) for name in ("end_lr", "end_lr_factor")},
}

TRAINER: Table = {
    "seed": Field(kind=integer),
    "gradient_accumulate_steps": Field(kind=integer),
    "check_for_nan": Field(kind=boolean, default=False),
    "check_val_every_n_steps": Field(kind=integer, default=-1),
    "check_val_every_n_epoch": no_counterpart(integer, 1, _EPOCHS),
    "seed_eval": no_counterpart(integer, 0, "evaluation uses no random numbers here"),
    "debug": no_counterpart(boolean, False, "steps are always compiled here"),
    "donate_train_state": no_counterpart(boolean, True, _OURS),
    "gradient_accumulate_scan": no_counterpart(boolean, False, _OURS, default=False),
    "enable_progress_bar": no_counterpart(boolean, False, _DISPLAY),
    **{name: Field(kind=boolean, default=None) for name in ("log_intermediates", "log_logit_stats")},
    "default_train_log_modes": Field(kind=list_of(string), default=None),
    "intermediates_log_modes": Field(kind=list_of(string), default=None),
    **{name: Field(kind=boolean, default=None) for name in ("log_grad_norm", "log_param_norm")},
    **{name: Field(kind=boolean, default=None) for name in ("log_grad_norm_per_param", "log_param_norm_per_param")},
}

_EVERY: Table = {
    **{name: Field(kind=integer) for name in ("every_n_steps", "every_n_epochs")},
    "main_process_only": Field(kind=boolean),
    "class_name": Field(kind=string, default=None),
}

CALLBACKS: Mapping[str, Table] = {
    "monitor": {
        **_EVERY,
        "monitor": Field(kind=optional(string)),
        "mode": Field(kind=string),
        "max_to_keep": Field(kind=optional(integer), default=REQUIRED),
        "save_top_k": Field(kind=optional(integer), default=None),
        "enable_async_checkpointing": Field(kind=boolean),
        "save_optimizer_state": no_counterpart(boolean, True, _OURS),
        "save_dataloader_state": no_counterpart(boolean, True, _OURS, default=True),
        "log_path": no_counterpart(optional(string), None, _MACHINE_PATH, default=None),
    },
    "log_lr_key": {**_EVERY, "log_lr_key": Field(kind=string)},
    "profile_log_dir": {
        **_EVERY,
        "profile_log_dir": Field(kind=string),
        **{f"profile_{name}": Field(kind=integer) for name in ("every_n_minutes", "first_step", "n_steps")},
    },
    "evaluation_tasks": {
        **_EVERY,
        "tokenizer_path": Field(kind=string),
        "evaluation_tasks": Field(kind=list_of(string)),
        **{
            name: Field(kind=boolean, default=None)
            for name in ("cache_requests", "write_out", "use_infinite_eval", "debug")
        },
        **{name: Field(kind=integer, default=None) for name in ("worker_buffer_size", "worker_count")},
        **{name: Field(kind=integer, default=None) for name in ("infinite_eval_chunksize", "bootstrap_iters")},
        **{name: Field(kind=optional(integer), default=None) for name in ("limit_requests", "context_length")},
        **{name: Field(kind=optional(integer), default=None) for name in ("batch_size", "num_fewshot")},
        "system_instruction": Field(kind=optional(string), default=None),
        "apply_chat_template": Field(kind=anything, default=None),  # a Boolean or a template
    },
}
"""Tables of the published callbacks. Each key is a field that only this callback has, and identifies the callback."""

LOGGER: Table = {
    "log_every_n_steps": Field(kind=integer),
    "log_path": Field(kind=optional(string), default=None),
    "log_dir": Field(kind=optional(string), default=None),
    "cmd_logging_name": Field(kind=string, default=None),
    "log_tools": Field(kind=list_of(mapping), default=None),
}

TOOL: Table = {
    **{name: Field(kind=string, default=None) for name in ("config_format", "log_epoch_key", "log_step_key")},
    **{name: Field(kind=integer, default=None) for name in ("tb_flush_secs", "tb_max_queue")},
    "tb_new_style": Field(kind=boolean, default=None),
    **{
        name: Field(kind=optional(string), default=None)
        for name in ("log_dir", "wb_entity", "wb_host", "wb_key", "wb_name", "wb_notes", "wb_project", "wb_resume_id")
    },
    "wb_settings": Field(kind=optional(mapping), default=None),
    "wb_tags": Field(kind=optional(list_of(string)), default=None),
}
"""Settings of the published logging tools."""

_ADAM = {"adam": False, "nadam": True, "adamw": False, "nadamw": True}
_SCHEDULES = {"cosine_decay": "CosineConfig", "exponential_decay": "ExponentialConfig", "linear": "LinearConfig"}


_Config = tuple[str, dict[str, Any]]
"""Name of a config class, and the values of its fields."""


class _Unsupported(Exception):  # noqa: N818 (it never leaves this module)
    """None of our configs can represent the recorded values. The message is the reason."""


def read_training(reading: Reading, content: Mapping[str, Any]) -> dict[str, PlainGroup]:
    """Read every group except the groups of the model."""
    optimizer, scheduler = _read_optimizer(reading, content)
    trainer, logger, saving = _read_trainer(reading, content)
    if reading.problems:
        return {}
    groups = {}
    if optimizer and scheduler:
        groups["scheduler"] = _group("optimizer.scheduler", lambda notes: _scheduler(scheduler, notes))
        groups["optimizer"] = _group("optimizer", lambda notes: _optimizer(optimizer, scheduler["lr"], notes))
    if trainer:
        groups["trainer"] = _trainer(trainer, scheduler)
    if saving:
        groups["checkpoint"] = _group("trainer.callbacks", lambda notes: _checkpoint(saving, trainer, notes))
    if logger:
        values = {"log_every_n_steps": logger["log_every_n_steps"]}
        groups["logger"] = _group("trainer.logger", lambda _: ("LoggerConfig", values))
    return groups


def _group(path: str, read: Callable[[list[str]], _Config]) -> PlainGroup:
    """Build a group from the config class and values that `read` returns. `read` receives a list, and appends its notes
    to this list."""
    notes: list[str] = []
    try:
        class_name, values = read(notes)
    except (_Unsupported, ArithmeticError) as why:
        return PlainGroup(path=path, unsupported=str(why), notes=notes, is_optional=True)
    return PlainGroup(class_name=class_name, path=path, values=values, notes=notes, is_optional=True)


def _values(reading: Reading, path: str, data: Any, table: Table, sections: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a section by field name."""
    own = reading.part()
    own.section(path, data, table, sections)
    own.check()
    return {name: own.values.get(f"{path}.{name}") for name in table}


def _read_optimizer(reading: Reading, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if "optimizer" not in content:
        reading.notes.append("optimizer was not recorded")
        return {}, {}
    data = content["optimizer"]
    optimizer = _values(reading, "optimizer", data, OPTIMIZER, ("scheduler",))
    schedule = data.get("scheduler") if isinstance(data, dict) else None
    return optimizer, _values(reading, "optimizer.scheduler", schedule, SCHEDULER)


def _optimizer(given: Mapping[str, Any], lr: float, notes: list[str]) -> _Config:
    name, decay = given["name"].lower(), given["weight_decay"]
    clips = {key: given[key] for key in ("grad_clip_norm", "grad_clip_value")}
    include, exclude = given["weight_decay_include"], given["weight_decay_exclude"]
    every = {"lr": lr, **clips, "weight_decay_include": [".*"] if include is None else include}
    if decay == 0 and exclude:
        notes.append("optimizer.weight_decay_exclude: no effect without weight decay")
    elif exclude:
        every["weight_decay_exclude"] = exclude
    if decay > 0 and name in ("adam", "nadam", "sgd"):
        raise _Unsupported(
            f"{name} with optimizer.weight_decay={decay} made the parameters grow by that factor in every step"
        )
    if given["nesterov"] and name != "sgd":
        notes.append(f"optimizer.nesterov=true: not used by {name}")
    betas = {key: given[key] for key in ("beta1", "beta2")}
    if name in _ADAM:
        return "AdamWConfig", {**every, **betas, "eps": given["eps"], "weight_decay": decay, "nesterov": _ADAM[name]}
    if name == "lion":
        return "LionConfig", {**every, **betas, "weight_decay": decay}
    if name == "sgd":
        return "SGDConfig", {**every, "momentum": given["beta1"], "nesterov": given["nesterov"]}
    raise _Unsupported(f"not supported: optimizer {show(given['name'])}")


def _scheduler(given: Mapping[str, Any], notes: list[str]) -> _Config:
    name, lr, total = given["name"], given["lr"], given["decay_steps"]
    steps = {key: given[key] for key in ("warmup_steps", "cooldown_steps")}
    if given["cooldown_steps"]:
        steps["cooldown_lr_factor"] = _share(given["cooldown_lr"], lr, "cooldown_lr")
    elif given["cooldown_lr"]:
        notes.append("optimizer.scheduler.cooldown_lr: no effect without a cool-down")
    if name == "constant" or (name in _SCHEDULES and total == 0 and not any(steps.values())):
        if name != "constant":
            notes.append(f"optimizer.scheduler.decay_steps=0: {name} with 0 steps is constant")
        return "ConstantConfig", {**steps, "decay_steps": total if total and given["cooldown_steps"] else None}
    if name not in _SCHEDULES:
        raise _Unsupported(f"not supported: schedule {show(name)}")
    return _SCHEDULES[name], {**steps, "decay_steps": total, "end_lr_factor": _end(given, lr)}


def _end(given: Mapping[str, Any], lr: float) -> float:
    """Return the learning rate at the end of the decay as a fraction of the peak learning rate. 0 if it was not
    recorded."""
    factor = given["end_lr_factor"]
    if given["end_lr"] is None:
        return factor or 0.0
    share = _share(given["end_lr"], lr, "end_lr")
    if factor is not None and factor != share:
        raise _Unsupported(f"optimizer.scheduler.end_lr is {share} times lr, but end_lr_factor={factor}")
    return share


def _share(value: float, lr: float, name: str) -> float:
    if lr == 0 and value != 0:
        raise _Unsupported(f"optimizer.scheduler.{name}={value} is not a multiple of lr=0")
    return value / lr if value else 0.0


def _read_trainer(
    reading: Reading, content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the values of the trainer, of its logger, and of the callback that saved checkpoints."""
    if "trainer" not in content:
        reading.notes.append("trainer was not recorded")
        return {}, {}, {}
    data = content["trainer"]
    trainer = _values(reading, "trainer", data, TRAINER, ("callbacks", "logger"))
    if not isinstance(data, dict):
        return {}, {}, {}
    saving = _read_callbacks(reading, data.get("callbacks"))
    logger = _values(reading, "trainer.logger", data.get("logger"), LOGGER)
    for index, tool in enumerate(logger["log_tools"] or ()):
        reading.part().section(f"trainer.logger.log_tools[{index}]", tool, TOOL)
    return trainer, logger, saving


def _read_callbacks(reading: Reading, data: Any) -> dict[str, Any]:
    """Return the values of the callback that saved checkpoints."""
    try:
        callbacks = [mapping(callback) for callback in list_of(mapping)(data)]
    except WrongType as wrong:
        reading.problem("trainer.callbacks", f"expected {wrong}, got {show(data)}")
        return {}
    saving: dict[str, Any] = {}
    for index, callback in enumerate(callbacks):
        path = f"trainer.callbacks[{index}]"
        mark = next((mark for mark in CALLBACKS if mark in callback), None)
        if mark is None:
            reading.problem(path, f"no known callback has the fields {', '.join(map(show, callback))}")
            continue
        known = dict(CALLBACKS[mark])
        if "save_top_k" in callback:  # the earlier name of max_to_keep
            known["max_to_keep"] = Field(kind=optional(integer), default=None)
        values = _values(reading, path, callback, known)
        saving = values if mark == "monitor" else saving
    return saving


def _trainer(given: Mapping[str, Any], scheduler: Mapping[str, Any]) -> PlainGroup:
    steps = scheduler.get("decay_steps")
    values = {
        "gradient_accumulate_steps": given["gradient_accumulate_steps"],
        "seed": given["seed"],
        "check_for_nan": given["check_for_nan"],
        "eval_every_n_steps": max(given["check_val_every_n_steps"], 0),
    }
    source = "the length of the schedule" if steps else "the default"
    not_recorded = {
        "batch_size": "trainer.batch_size was not recorded; using {}",
        "max_steps": f"trainer.max_steps was not recorded; using {{}}, {source}",
    }
    return PlainGroup(
        class_name="TrainerConfig",
        path="trainer",
        values=values | ({"max_steps": steps} if steps else {}),
        not_recorded=not_recorded,
        is_optional=True,
    )


def _checkpoint(given: Mapping[str, Any], trainer: Mapping[str, Any], notes: list[str]) -> _Config:
    """Read the callback that saved checkpoints. It saved after a validation, once the given number of steps or epochs
    had passed."""
    validations = max(trainer["check_val_every_n_steps"], 0)
    kept = given["save_top_k"] if given["max_to_keep"] is None else given["max_to_keep"]
    if kept is None:
        raise _Unsupported("max_to_keep=null, which keeps every checkpoint")
    by_loss = (given["monitor"] or "").endswith(("perplexity", "loss")) and given["mode"] == "min"
    if given["monitor"] and not by_loss:
        notes.append(
            f"trainer.callbacks: the best checkpoints by {given['monitor']} were kept; xlstm-hydra keeps the latest"
        )
    return "CheckpointConfig", {
        "save_every_n_steps": given["every_n_steps"] if given["every_n_steps"] > 0 else validations,
        "max_to_keep": kept,
        "keep": "best" if by_loss else "latest",
        "async_save": given["enable_async_checkpointing"],
    }
