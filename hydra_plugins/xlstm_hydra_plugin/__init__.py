"""Shows the groups of xlstm_hydra to every Hydra app. Hydra runs this at each start, so it imports nothing."""
