"""A plain GemmaCausalLM answers calls as our engine does, and solvers leave the same greedy traces on both."""

import dataclasses

import pytest
from keras_hub.models import GemmaBackbone, GemmaCausalLM

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig, SolverConfig
from gemma_keras.inference.chat import ChatModel
from gemma_keras.inference.constraints.constraint import Choice, Regex
from gemma_keras.inference.keras_hub.chat import KerasChat
from gemma_keras.inference.language_model import Ask
from gemma_keras.models.forward import Params, build_backbone
from gemma_keras.solvers.prompts import load_builtin_prompts, replace_prompts
from gemma_keras.solvers.registry import make_solver
from gemma_keras.solvers.steps import Settings
from gemma_keras.solvers.trace import Question
from gemma_keras.text.foreign_template import ForeignTemplate
from gemma_keras.text.templates import TEMPLATES
from tests.chat_templates import OTHER
from tests.inference.models import varied_params
from tests.models.conftest import small
from tests.solvers.scripted import NAMES, PIECES


@pytest.fixture(scope="module")
def shape(tokenizer):
    # keras_hub divides queries by the root of head_dim, whatever the shape says.
    return small(
        num_layers=2, vocabulary_size=tokenizer.vocabulary_size, query_pre_attn_scalar=16, sliding_window=512
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(shape) -> Params:
    return varied_params(shape)


@pytest.fixture(scope="module")
def ours(shape, params, tokenizer) -> ChatModel:
    backbone = build_backbone(shape, "float32")
    return ChatModel(tokenizer=tokenizer, backbone=backbone, params=params, template=TEMPLATES["gemmalm_zh"])


@pytest.fixture(scope="module")
def causal_lm(shape, params) -> GemmaCausalLM:
    backbone = GemmaBackbone(
        vocabulary_size=shape.vocabulary_size, num_layers=shape.num_layers, num_query_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_key_value_heads, hidden_dim=shape.hidden_dim,
        intermediate_dim=2 * shape.intermediate_dim, head_dim=shape.head_dim, use_post_ffw_norm=True,
        use_post_attention_norm=True, attention_logit_soft_cap=shape.attention_logit_soft_cap,
        final_logit_soft_cap=shape.final_logit_soft_cap, use_sliding_window_attention=True,
        sliding_window_size=shape.sliding_window, dtype="float32",
    )  # fmt: skip
    for weight in backbone.weights:
        weight.assign(params[weight.path])
    return GemmaCausalLM(backbone, preprocessor=None)


@pytest.fixture(scope="module")
def theirs(causal_lm, tokenizer) -> KerasChat:
    return KerasChat(causal_lm, tokenizer, TEMPLATES["gemmalm_zh"], max_position=2048, batch_rows=4)


# Every prompt begins with it, so that all have about the same length and few programs are compiled.
PREFIX = "春天来了，河边的柳树发芽了，孩子们在草地上放风筝。" * 11
LETTER = Choice(("A", "B"))


def ask(text: str, **options) -> Ask:
    return Ask(messages=[{"role": "user", "content": PREFIX + text}], **{"max_new_tokens": 40, **options})


@pytest.mark.long
def test_the_same_greedy_trace_on_both(ours, theirs):
    """Plan and letter under constraints, everything else free."""
    solver = SolverConfig(constrained="list", plan_temperature=0.0, summary_temperature=0.0, judge_temperature=0.0)
    sampling = SamplingConfig(max_new_tokens=40, temperature=0.0, top_p=0.9, repetition_penalty=1.1)
    prompts = replace_prompts(
        load_builtin_prompts("zh"), {name: PREFIX + text for name, text in NAMES.items()} | PIECES, "here"
    )
    settings = Settings(solver=solver, sampling=sampling, prompts=prompts)
    question = Question("小明有 20 本书，借走 6 本，还剩多少本？", ("14 本", "26 本"))
    (one,), (other,) = (
        make_solver("simplified_enhanced", model, settings).solve([question]) for model in (ours, theirs)
    )
    assert one.answer and not one.failure and len(one.work.decomposed.steps) >= 3 and one.work.check.rewrites
    assert one.work == other.work
    assert (one.answer, one.letter) == (other.answer, other.letter)
    assert dataclasses.replace(one.cost, seconds=0.0) == dataclasses.replace(other.cost, seconds=0.0)


@pytest.mark.long
def test_each_call_has_its_own_settings(theirs):
    asks = [
        ask("春天的花", temperature=0.0),
        ask("写一首诗", temperature=1.0, seed=1, max_new_tokens=9),
        ask("写一首诗", temperature=1.0, seed=2, top_p=0.5),
        ask("写一首长长的诗", temperature=0.0, repetition_penalty=1.5),
        ask("对吗？", temperature=1.0, constraint=Regex("[0-9]{6}"), seed=3),
        ask("对吗？", temperature=1.0, constraint=Regex("[0-9]{6}"), seed=4),
    ]
    replies = theirs.answer(asks)
    assert replies[2:3] == theirs.answer(asks[2:3])  # whatever stands beside it
    assert replies[::-1] == theirs.answer(asks[::-1])
    assert len({reply.text for reply in replies}) == 6
    assert replies[1].new_tokens <= 9 and replies[4].text.isdigit() and replies[4].ended
    assert [reply.prompt_tokens for reply in replies[1:3]] == [replies[1].prompt_tokens] * 2


def test_programs_are_compiled_once(theirs, causal_lm, monkeypatch):
    theirs.answer([ask("一"), ask("二", constraint=LETTER)])

    def compile_again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(causal_lm, "compile", compile_again)
    theirs.answer([ask("三", temperature=0.3, seed=5), ask("四", constraint=LETTER)])


def test_a_template_of_others_serves_both(ours, theirs, monkeypatch, tokenizer):
    text = OTHER["date and a system text of its own"]
    template = ForeignTemplate(name="the chat template of DIR", source=text, tokens={"bos_token": "<bos>"})
    monkeypatch.setattr(theirs, "_template", template)
    question = ask("春天的花", temperature=0.0)
    replies = [model.answer([question])[0] for model in (dataclasses.replace(ours, template=template), theirs)]
    assert replies[0] == replies[1]
    assert replies[0].prompt_tokens == len(template.prompts(tokenizer, [question.messages])[0])


def test_an_answer_ends_before_its_stop_token(theirs, monkeypatch, tokenizer):
    greedy = ask("春天的花", temperature=0.0)
    (whole,) = theirs.answer([greedy])
    assert not whole.ended and whole.new_tokens == 40
    monkeypatch.setattr(theirs, "_stop_ids", (*theirs._stop_ids, tokenizer.encode_content(whole.text)[-1]))
    (cut,) = theirs.answer([greedy])
    assert cut.ended and cut.new_tokens < 40 and whole.text.startswith(cut.text)


def test_mistakes_are_told(theirs, tokenizer):
    with pytest.raises(UserError, match="prompt 1 has .* exceeds the model's 2048 positions; shorten it"):
        theirs.answer([ask("短"), ask("长" * 3000)])
    with pytest.raises(UserError, match="sampling.top_p is 0"):
        theirs.answer([ask("短", top_p=0.0)])
    with pytest.raises(UserError):
        theirs.answer([ask("短", constraint=Regex("("))])
    assert theirs.answer([]) == []
    other = GemmaCausalLM(GemmaBackbone(
        vocabulary_size=97, num_layers=1, num_query_heads=1, num_key_value_heads=1, hidden_dim=8, intermediate_dim=8,
        head_dim=8,
    ), preprocessor=None)  # fmt: skip
    with pytest.raises(UserError, match="has 2560 pieces, the model 97 embeddings"):
        KerasChat(other, tokenizer, TEMPLATES["gemma"])
