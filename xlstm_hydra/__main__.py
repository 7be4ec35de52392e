"""Entry point of `python -m xlstm_hydra`."""

from xlstm_hydra.cli.main import main

if __name__ == "__main__":
    main()
