"""The defaults of ``llmrank prune`` and of ``prune_model``, components as specs; those of a recipe are the same as objects."""

from __future__ import annotations

__all__ = ["DEFAULTS", "DEFAULT_LENGTH", "DEFAULT_SAMPLES", "DEFAULT_TOKENS", "MOST_REPAIR_TOKENS"]

# The local pruner leaves equal layers equally wide, so transformers alone loads the checkpoint. The other defaults rest
# on benchmarks/results/across.md (scorer), quality.md (pipeline) and out_of_domain.md (repair, calibration).
DEFAULTS: dict[str, str] = {
    "scorer": "auto",
    "pruner": "local",
    "pipeline": "isolated",
    "repair": "lstsq",
    "calibration": "auto",
}
# Calibration sequences, and their length in tokens.
DEFAULT_SAMPLES = 16
DEFAULT_LENGTH = 1024
# Tokens to heal with.
DEFAULT_TOKENS = 65_536
# A repair before healing is fitted to as many tokens as healing learns from, but to no more than this: their hidden states are in
# memory.
MOST_REPAIR_TOKENS = 131_072
