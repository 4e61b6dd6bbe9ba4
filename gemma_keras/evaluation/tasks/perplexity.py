"""Perplexity and token accuracy of a model on held-out rows."""

from gemma_keras.config.errors import require
from gemma_keras.data.pipeline import PreparedSplit, evaluation_batches
from gemma_keras.inference.chat import ChatModel
from gemma_keras.training.objectives.token_figures import make_evaluator


def evaluate_model(model: ChatModel, split: PreparedSplit, batch_rows: int) -> dict[str, float]:
    """The figures of `token_figures.make_evaluator`.

    Raises:
        UserError: the split has no rows.
    """
    require(
        len(split) > 0, "there are no rows to evaluate; name corpora in data.validation, or give data.validation_rows."
    )
    return make_evaluator(model.backbone, model.plan)(model.params, evaluation_batches(split, batch_rows=batch_rows))
