"""Config group `task`: train, evaluate, generate or plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, affects
from ._process import ProcessInfo
from ._rules import at_least, below, one_of, own_name, unused
from .distributed import DistributedConfig
from .model import SubModelConfig
from .trainer import TrainerConfig

PARAMETER_ROWS = ("modules", "all", "none")
"""Values of `PlanTaskConfig.parameters`."""

SPLITS = ("validation", "train", "all")
"""Parts of the corpus that can be evaluated."""


@config_dataclass
class TaskConfig(ConfigDict):
    """Fields common to all tasks."""

    name: str = field(metadata=affects(BOOKKEEPING))
    """Name of the task, set by the selected option."""

    def rules(self) -> Iterator[Problem]:
        """Check that `name` is the name of the class."""
        yield from own_name(self)

    def model_rules(self, model: SubModelConfig) -> Iterator[Problem]:
        """Check the task against the model. Keys in the yielded problems are relative to the task."""
        del model
        yield from ()

    def reads_data(self) -> bool:
        """True if the task reads examples from the source in the group `data`, in batches of `trainer.batch_size`."""
        return True


@config_dataclass
class TrainTaskConfig(TaskConfig):
    """Train the model and save checkpoints."""

    name: str = "train"
    """Name of the task, set by the selected option."""


@config_dataclass
class _CheckpointTaskConfig(TaskConfig):
    """A task that uses the parameters of a checkpoint."""

    checkpoint: str = field(metadata=affects(BOOKKEEPING))
    """Run folder with the parameters to use, at its latest step; `RUN@N` uses step N. The model in the config must be
    the same; `--from RUN` sets both. The layout may differ."""

    def rules(self) -> Iterator[Problem]:
        """Check that a checkpoint is given."""
        yield from super().rules()
        if not self.checkpoint.partition("@")[0].strip():
            rule = "must name a run folder, such as outputs/my_run or outputs/my_run@200"
            yield Problem({"checkpoint": self.checkpoint}, rule)


@config_dataclass
class EvaluateTaskConfig(_CheckpointTaskConfig):
    """Compute the loss of a checkpoint on the source in the group `data`, in batches of `trainer.batch_size`. The loss
    is the mean over all target tokens."""

    name: str = "evaluate"
    """Name of the task, set by the selected option."""

    split: str = field(default="validation", metadata=affects(BOOKKEEPING))
    """Part of the corpus to evaluate: validation (the held-out part, see `data.validation_fraction`), train (the rest)
    or all."""

    num_batches: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Number of batches to evaluate, spread evenly over the selected part. null: all batches."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values."""
        yield from super().rules()
        yield from one_of(self, "split", SPLITS)
        yield from at_least(self, 1, "num_batches")


@config_dataclass
class GenerateTaskConfig(_CheckpointTaskConfig):
    """Continue a prompt, token by token, with the parameters of a checkpoint.

    The parameters are sharded according to the layout, and the compiler inserts the communication. All data-parallel
    devices compute the same samples. Set `prompt` for a model that was trained on bytes, and `prompt_tokens` for any
    other model."""

    name: str = "generate"
    """Name of the task, set by the selected option."""

    prompt: str = field(default="", metadata=affects(BOOKKEEPING))
    """Text to continue, which is used as the beginning of a document. Empty: generate a document from its beginning."""

    prompt_tokens: list[int] | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Token ids to continue, for a model that was not trained on bytes. null: use `prompt`."""

    max_new_tokens: int = field(default=256, metadata=affects(BOOKKEEPING))
    """Maximum number of tokens to generate per sample."""

    stop_token: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Token id that ends a sample early, and is not part of the sample. null: the byte 0, which begins the next
    document, if the model continues `prompt`; no stop token if it continues `prompt_tokens`."""

    num_samples: int = field(default=1, metadata=affects(BOOKKEEPING))
    """Number of samples, which all continue the same prompt and are generated together."""

    temperature: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Sampling temperature, by which the logits are divided. 0: always choose the most likely token."""

    top_k: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Sample only from the `top_k` most likely tokens. null: sample from all tokens."""

    top_p: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Sample only from the smallest set of most likely tokens whose probabilities, after `top_k`, sum to at least
    `top_p`. 1: no limit."""

    seed: int = field(default=0, metadata=affects(BOOKKEEPING))
    """Random seed for sampling. Each sample depends only on this seed and on the index of the sample."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, that only one prompt is given, and that all sampling settings have an effect."""
        yield from super().rules()
        yield from at_least(self, 1, "max_new_tokens", "num_samples", "top_k")
        yield from at_least(self, 0, "temperature", "seed", "stop_token")
        yield from below(self, 2**32, "seed")
        yield from at_least(self, 0, "top_p", above=True)
        yield from below(self, 1, "top_p", inclusive=True)
        yield from self._prompt_rules()
        if self.temperature == 0:
            fix = "Set {temperature} above 0 to sample, or remove this setting."
            for key in ("top_k", "top_p", "seed", "num_samples"):
                yield from unused(self, key, "temperature", 0, fix)

    def _prompt_rules(self) -> Iterator[Problem]:
        if self.prompt_tokens is None:
            return
        if self.prompt:
            given = {"prompt": self.prompt, "prompt_tokens": self.prompt_tokens}
            yield Problem(given, "only one prompt is allowed", "Remove {prompt} or {prompt_tokens}.")
        if not self.prompt_tokens or min(self.prompt_tokens) < 0:
            rule = "must contain at least one token id, each 0 or more"
            yield Problem({"prompt_tokens": self.prompt_tokens}, rule, "For example [464,2068].")

    def tokens(self) -> list[int]:
        """Return the prompt as token ids. Text becomes bytes, preceded by the token 0 that begins every document."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        return [0, *self.prompt.encode("utf-8", errors="surrogateescape")]

    def model_rules(self, model: SubModelConfig) -> Iterator[Problem]:
        """Check that the token ids are in the vocabulary, and that the model can generate a text of this length."""
        size = model.get("vocab_size")
        if not isinstance(size, int) or size < 1:
            return
        given = {"prompt_tokens": max(self.prompt_tokens or [0]), "stop_token": self.stop_token}
        for key, token in given.items():
            if token is not None and token >= size:
                yield Problem(
                    {key: token, "/model.vocab_size": size}, "token ids must be less than {/model.vocab_size}"
                )
        if self.prompt_tokens is None and size < 256:
            fix = "Give token ids in {prompt_tokens}."
            yield Problem(
                {"prompt": self.prompt, "/model.vocab_size": size}, "a text prompt requires at least 256 token ids", fix
            )
        if self.top_k is not None and self.top_k > size:
            fix = "Remove {top_k} to sample from all tokens."
            yield Problem({"top_k": self.top_k, "/model.vocab_size": size}, "{top_k} exceeds the vocabulary size", fix)
        yield from model.generation_rules(len(self.tokens()), self.max_new_tokens)

    def reads_data(self) -> bool:
        """Return False: the input is the prompt."""
        return False


@config_dataclass
class PlanTaskConfig(TaskConfig):
    """Predict the memory, FLOPs, communication and time of a training step, on devices that need not be present."""

    name: str = "plan"
    """Name of the task, set by the selected option."""

    num_devices: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Number of devices in the planned run, over all hosts. null: the number of devices on one host
    (`device.devices_per_host`)."""

    device: str | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Option of the group `device` to plan for, such as `h100_80gb`. null: the device in the group `device`, or
    `h100_80gb` if that is null."""

    parameters: str = field(default="modules", metadata=affects(BOOKKEEPING))
    """Rows of the parameter table: modules (one per module), all (one per parameter) or none (no table)."""

    compile: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Also compile the step for the same number of simulated CPU devices, and show the compiler's figures next to the
    predicted ones."""

    search: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Compare the possible layouts on this number of devices, and show the best. The exit status is that of the plan
    with the best layout."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values."""
        yield from super().rules()
        yield from at_least(self, 1, "num_devices")
        yield from below(self, 2**31, "num_devices")
        yield from one_of(self, "parameters", PARAMETER_ROWS)

    def place_rules(self, distributed: DistributedConfig, trainer: TrainerConfig) -> Iterator[Problem]:
        """Check that no setting is set that has no effect on a plan, such as process addresses. Keys in problems are
        absolute."""
        placed = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
        values = {f"distributed.{key}": distributed.get(key) for key in placed}
        values["trainer.simulated_devices"] = trainer.simulated_devices
        if given := {key: value for key, value in values.items() if value is not None}:
            rule = "has no effect with task=plan; task.num_devices sets the number of devices to plan for"
            yield Problem(given, rule, "Remove this setting.", unused=dict.fromkeys(given))

    def launch_rules(self, process: ProcessInfo | None) -> Iterator[Problem]:
        """Check that the plan is made by a single process."""
        if process is not None:
            rule = (
                f"a plan runs in a single process, but this is process {process.process_id} of {process.num_processes}"
            )
            yield Problem({"name": self.name}, rule, "Run the command without srun.")
