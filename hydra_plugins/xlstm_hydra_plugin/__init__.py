"""What makes the groups of xlstm_hydra visible to every Hydra app. Hydra runs this at each start, so it imports nothing."""
