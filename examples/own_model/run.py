"""Run `xlstm-hydra` and allow checkpoints to import the model in this folder.

    python run.py resume=outputs/my_run
    python run.py --from outputs/my_run task=generate task.prompt="def "

An installed package does not need this program. It allows its model in its pyproject.toml:

    [project.entry-points."xlstm_hydra.models"]
    gru = "gru_lm"
"""

from xlstm_hydra.cli.main import main
from xlstm_hydra.metadata import allow_modules

if __name__ == "__main__":
    allow_modules("gru_lm")
    main()
