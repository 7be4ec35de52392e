"""Entry point of the command `xlstm-hydra` and of `python -m xlstm_hydra`."""

import atexit
import gc
import sys


def main() -> None:
    """Run the command with garbage collection disabled until a run starts, because there is little garbage before that.
    Skip garbage collection at exit too: it would take a fifth of the time of `--cfg job`."""
    gc.disable()
    atexit.register(gc.freeze)
    if {"-sc", "--shell-completion"} & {*sys.argv}:
        from xlstm_hydra.cli import completion  # loads neither Hydra nor JAX

        completion.main(sys.argv[1:])
        return
    from xlstm_hydra.cli.main import main

    main()


if __name__ == "__main__":
    main()
