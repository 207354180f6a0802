"""The defaults of ``llmrank prune`` and of ``prune_model``, as specs; those of a recipe are the same as objects."""

from __future__ import annotations

__all__ = ["DEFAULTS"]

# The local pruner leaves equal layers equally wide, so transformers alone loads the checkpoint. The other defaults rest
# on benchmarks/results/across.md (scorer), quality.md (pipeline) and out_of_domain.md (repair, calibration).
DEFAULTS: dict[str, str] = {
    "scorer": "auto",
    "pruner": "local",
    "pipeline": "isolated",
    "repair": "lstsq",
    "calibration": "auto",
}
