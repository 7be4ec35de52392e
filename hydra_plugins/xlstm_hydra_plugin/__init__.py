"""Make the groups of xlstm_hydra available to every Hydra app. Hydra imports this at each start: keep it empty."""
