"""Plugins that make the config groups of xlstm_hydra available to every Hydra app.

Every Hydra app imports this module at startup, so it must stay empty.
"""
