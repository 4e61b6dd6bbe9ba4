"""What an untrained model says under the constraints of the solvers: all of it can be read."""

import pytest

from gemma_keras.config.sections import InferenceConfig
from gemma_keras.inference.chat import ChatModel
from gemma_keras.inference.constraints.constraint import Choice
from gemma_keras.inference.language_model import Ask
from gemma_keras.models.forward import build_backbone, initial_params
from gemma_keras.solvers.replies import plans, scores
from gemma_keras.solvers.replies.letters import find_option
from gemma_keras.text.templates import TEMPLATES
from tests.models.conftest import small

COUNTS = [pytest.param(16, id="some"), pytest.param(1000, id="thousand", marks=pytest.mark.long)]
LETTERS = Choice(("A", "B", "C", "D"))
TEMPERATURES = (0.0, 0.7, 1.5)


@pytest.fixture(scope="module")
def model(tokenizer) -> ChatModel:
    architecture = small(vocabulary_size=tokenizer.vocabulary_size, num_layers=2, max_position=512)
    backbone = build_backbone(architecture, "float32")
    params = initial_params(backbone, seed=0)
    return ChatModel(
        tokenizer=tokenizer, backbone=backbone, params=params, template=TEMPLATES["gemmalm_zh"],
        inference=InferenceConfig(max_rows=16),
    )  # fmt: skip


def replies(model, count, constraint, max_new_tokens) -> list[str]:
    asks = [
        Ask(
            messages=[{"role": "user", "content": f"第 {number} 题"}], temperature=TEMPERATURES[number % 3], seed=number,
            max_new_tokens=max_new_tokens, constraint=constraint,
        )
        for number in range(count)
    ]  # fmt: skip
    return [reply.text for reply in model.answer(asks)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("form", ["list zh", "list en", "json zh"])
def test_decompositions_are_read_whole(form, count, model):
    kind, language = form.split()
    constraint = plans.make_list_constraint(language) if kind == "list" else plans.make_json_constraint(language)
    found = replies(model, count, constraint, 200)
    for text in found:
        assert 3 <= len(plans.read_sub_questions(text)) <= plans.MOST_SUB_QUESTIONS, text
    assert len(set(found)) > count / 2


@pytest.mark.parametrize("count", COUNTS)
def test_letters_and_scores_are_read(count, model):
    letters = replies(model, count, LETTERS, 4)
    assert [find_option(text, "ABCD") for text in letters] == letters and 1 < len(set(letters)) <= 4
    numbers = replies(model, count, scores.SCORE, 8)
    assert all(f"{scores.read_complexity(text):.1f}" == text for text in numbers) and len(set(numbers)) > 2
