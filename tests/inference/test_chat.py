"""Replies to messages, the functions on strings, and the interactive conversation."""

import dataclasses
import itertools

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.chat import ChatModel, apply_chat_template, conversation, generate_response
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.requests import Request
from gemma_keras.models.forward import build_backbone, initial_params
from gemma_keras.text.templates import TEMPLATES
from tests.models.conftest import small

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=0.7, top_p=0.95, repetition_penalty=1.1)
QUESTION = [{"role": "user", "content": "春天的花有哪些？"}]


@pytest.fixture(scope="module")
def model(tokenizer) -> ChatModel:
    architecture = small(vocabulary_size=tokenizer.vocabulary_size, max_position=128)
    backbone = build_backbone(architecture, "float32")
    params = initial_params(backbone, seed=0)
    return ChatModel(tokenizer=tokenizer, backbone=backbone, params=params, template=TEMPLATES["gemmalm_zh"])


def typed(*lines, end=EOFError):
    """What a person types: a function that returns a line a call, then raises `end`."""
    entries = itertools.chain(lines, [end])

    def read() -> str:
        entry = next(entries)
        if not isinstance(entry, str):
            raise entry
        return entry

    return read


def test_reply_decodes_the_generated_tokens(model):
    ids, _ = model.template.encode(model.tokenizer, QUESTION, add_generation_prompt=True)
    ((expected,),) = model.engine.generate([Request(prompt=ids, sampling=SAMPLING, stop_ids=model.stop_ids)])
    reply = model.reply(QUESTION, SAMPLING)
    assert reply and reply == model.tokenizer.decode(expected.tokens).strip("\n\r")


def test_replies_of_a_batch_are_those_of_single_conversations(model):
    conversations = [
        QUESTION,
        [{"role": "system", "content": "你是一位老师。"}, {"role": "user", "content": "写一首短诗"}],
        [*QUESTION, {"role": "model", "content": "桃花。"}, {"role": "user", "content": "还有呢？"}],
    ]
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    replies = model.reply_batch(conversations, greedy)
    assert replies == [model.reply(messages, greedy) for messages in conversations]
    assert len(set(replies)) == 3


def test_generate_response_answers_the_rendered_prompt(model):
    expected = model.reply(QUESTION, SAMPLING)
    rendered = TEMPLATES["gemmalm_zh"].render(QUESTION, add_generation_prompt=True)
    for prompt in (apply_chat_template(QUESTION), rendered, "<bos>" + rendered):
        assert generate_response(model, model.tokenizer, prompt, max_new_tokens=12) == expected
    engine = Engine(model.backbone, model.params)
    assert generate_response(engine, model.tokenizer, rendered, max_new_tokens=12) == expected


def test_a_conversation_keeps_its_history(model):
    answers = list(conversation(model, SAMPLING, typed("你好", "", "再说一次"), system="你是助手。"))
    assert len(answers) == 2
    messages = [{"role": "system", "content": "你是助手。"}, {"role": "user", "content": "你好"}]
    assert answers[0] == model.reply(messages, SAMPLING)
    messages += [{"role": "model", "content": answers[0]}, {"role": "user", "content": "再说一次"}]
    assert answers[1] == model.reply(messages, dataclasses.replace(SAMPLING, seed=1))


def test_answers_are_shown_while_they_are_generated(model):
    shown = []
    lines = ("你好", "很长" * 200, "再说一次")
    answers = list(conversation(model, SAMPLING, typed(*lines), show=shown.append))
    assert answers == list(conversation(model, SAMPLING, typed(*lines)))
    assert len(shown) > 5 and "".join(shown).replace("\n", "") == "".join(answers).replace("\n", "")


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_ends_cleanly(model, end):
    assert list(conversation(model, SAMPLING, typed(end=end))) == []


def test_a_long_conversation_goes_on_without_its_beginning(model):
    lines = ["第一个问题是什么？", "第二个问题", "第三个问题", "第四个问题", "第五个问题", "第六个问题", "第七个问题"]
    answers = list(conversation(model, SAMPLING, typed(*lines)))
    assert len(answers) == len(lines) and not any(answer.startswith("[prompt") for answer in answers)
    everything = []
    for line, answer in zip(lines, answers, strict=True):
        everything += [{"role": "user", "content": line}, {"role": "model", "content": answer}]
    assert model.prompt_length(everything[:-1]) + SAMPLING.max_new_tokens > 128


def test_a_line_that_is_too_long_is_told_and_forgotten(model):
    answers = list(conversation(model, SAMPLING, typed("很长" * 200, "你好")))
    assert answers[0].startswith("[prompt 0 has") and "128 positions" in answers[0]
    assert answers[1] == model.reply([{"role": "user", "content": "你好"}], SAMPLING)


def test_what_came_before_a_line_that_is_too_long_is_kept(model):
    refused = []
    lines = ("你好", "很长" * 200, "再说")
    answers = list(conversation(model, SAMPLING, typed(*lines), refused=lambda *what: refused.append(what)))
    assert [answers[0], answers[2]] == list(conversation(model, SAMPLING, typed("你好", "再说")))
    assert [(line, f"[{error}]") for line, error in refused] == [(lines[1], answers[1])]


def test_only_conversations_at_fault_have_no_answer(model):
    asked = [[{"role": "user", "content": text}] for text in ("你好", "很长" * 200, "再见")]
    asked.append([{"role": "nobody", "content": "?"}])
    first, too_long, last, unknown = model.answer_each(asked, SAMPLING)
    whole = model.answer_batch([asked[0], QUESTION, asked[2]], SAMPLING)
    assert (first, last) == (whole[0], whole[2])
    assert isinstance(too_long, UserError) and "exceeds the model's 128 positions" in str(too_long)
    assert isinstance(unknown, UserError) and "has the role 'nobody'" in str(unknown)


def test_tokenizer_and_weights_must_belong_together(model):
    backbone = build_backbone(small(), "float32")
    message = "has 2560 pieces, the model 97 embeddings"
    with pytest.raises(UserError, match=message):
        ChatModel(tokenizer=model.tokenizer, backbone=backbone, params={}, template=model.template)
    with pytest.raises(UserError, match=message):
        generate_response(Engine(backbone, {}), model.tokenizer, "你好")
