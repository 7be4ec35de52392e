"""`xlstm-hydra` for runs of the model in this folder: their checkpoints may name its classes.

    python run.py resume=outputs/my_run
    python run.py --from outputs/my_run task=generate task.prompt="def "

An installed package says the same in its pyproject.toml, and needs no such program:

    [project.entry-points."xlstm_hydra.models"]
    gru = "gru_lm"
"""

from xlstm_hydra.cli.main import main
from xlstm_hydra.metadata import allow_modules

if __name__ == "__main__":
    allow_modules("gru_lm")
    main()
