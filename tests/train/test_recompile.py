"""Which fields of a config need another compiled program, and which do not."""

ARGUMENTS = {
    "lr": 0.5,
    "grad_clip_norm": 0.25,
    "weight_decay": 0.0,
    "beta1": 0.5,
    "beta2": 0.5,
    "eps": 1e-3,
    "momentum": 0.5,
    "warmup_steps": 3,
    "cooldown_steps": 2,
}
