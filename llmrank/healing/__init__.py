"""Healing: a pruned model learns the predictions of the dense model it was made from."""

from llmrank.healing.distillation import Distillation
from llmrank.healing.heal import heal_model
from llmrank.healing.ledger import Healing
from llmrank.healing.predictions import Predictions, predict_tokens
from llmrank.healing.teachers import DenseModel, Teacher

__all__ = ["DenseModel", "Distillation", "Healing", "Predictions", "Teacher", "heal_model", "predict_tokens"]
