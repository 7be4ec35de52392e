"""The command `xlstm-hydra`: compose, check, then wake JAX up and do the task.

Exit status: 0 done, 1 failed while running, 2 the config or the command line is wrong.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import ConfigError
from xlstm_hydra.hydra import explain, load
from xlstm_hydra.hydra._errors import REFUSED

CONFIG_NAME = "config"


def run_task(cfg: DictConfig) -> float | None:
    """Check the config, then do its task. Returns the last validation loss, for sweepers that optimise it."""
    try:
        run = load(cfg)
        folder, overrides = _run_folder(cfg)
        from xlstm_hydra.train import train  # JAX wakes up here, once the config is known to be good

        return train(run, folder, overrides)
    except ConfigError as error:
        _refuse(error)
        raise SystemExit(2) from None  # not an exception to Hydra, which would print a traceback


def _run_folder(cfg: DictConfig) -> tuple[Path, list[str]]:
    """Hydra's folder for this job, with the resolved config in it, and the job's overrides."""
    hydra_cfg = HydraConfig.get()
    folder = Path(hydra_cfg.runtime.output_dir)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    return folder, list(hydra_cfg.overrides.task)


def main() -> None:
    """Entry point of the console command."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console command cannot see the user's own modules otherwise
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, and the message is ours to write
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=CONFIG_NAME)(run_task)()
    except (ConfigError, *REFUSED) as error:
        if wants_traceback:
            raise
        _refuse(error if isinstance(error, ConfigError) else _explained(error))
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _refuse(error: ConfigError) -> None:
    print(f"xlstm-hydra: {error}", file=sys.stderr)


def _explained(error: Exception) -> ConfigError:
    args = get_args_parser().parse_args()
    return ConfigError(explain(error, args.overrides, args.config_name or CONFIG_NAME, args.config_dir))
