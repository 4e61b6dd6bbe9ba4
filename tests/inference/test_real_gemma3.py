"""google/gemma-3-270m against transformers, float32, where GEMMA_KERAS_ASSETS has it."""

import math

import jax
import numpy as np
import pytest
import torch
import transformers

from gemma_keras.config.sections import CorpusConfig, DataConfig, SamplingConfig
from gemma_keras.data.pipeline import PreparedSplit, evaluation_batches
from gemma_keras.data.prepare import prepare
from gemma_keras.inference.engine import Engine
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.text.templates import get_template
from gemma_keras.text.tokenizer import Tokenizer
from gemma_keras.training.objectives.token_figures import make_evaluator
from tests.inference.models import generate, hf_generate

QUESTIONS = (
    "中国的首都是哪里？",
    "请用一句话解释什么是光合作用。",
    "春天来了，公园里",
    "把下面的句子翻译成英文：今天天气很好，我们去爬山吧。",
    "写一首关于秋天的诗。",
    "鲁迅是谁？他写过哪些作品？",
    "小明有 12 个苹果，吃掉 5 个，还剩几个？",
    "学习编程应该从哪里开始？",
)
LONG_TEXT = "".join(
    f"{number}、{question}从前有一位老人住在河边，他每天都要数一数过河的船。"
    for number, question in enumerate(QUESTIONS * 5)
)


@pytest.fixture(scope="module")
def model(gemma3_270m):
    return transformers.AutoModelForCausalLM.from_pretrained(gemma3_270m, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def own_tokenizer(gemma3_270m):
    return Tokenizer(gemma3_270m / "tokenizer.model")


@pytest.fixture(scope="module")
def engine(gemma3_270m):
    architecture = describe_weights(gemma3_270m)
    backbone = build_backbone(architecture, "float32")
    return Engine(backbone, load_params(backbone, architecture, gemma3_270m, "float32"))


def our_logits(engine, rows: list[list[int]]) -> np.ndarray:
    """Logits [T, V] of `rows` packed into one."""
    positions = np.concatenate([np.arange(len(row)) for row in rows])[None]
    segments = np.repeat(np.arange(1, len(rows) + 1), [len(row) for row in rows])[None]
    backbone = engine.backbone
    run = jax.jit(lambda params, *batch: logits(backbone, params, forward(backbone, params, *batch)))
    return np.asarray(run(engine.params, np.concatenate(rows)[None], positions, segments)[0])


def test_logits_of_700_tokens(engine, model, own_tokenizer):
    """Long enough for the windows of 512 and both bases of RoPE to matter; packed behind another row or alone."""
    row = [own_tokenizer.bos_id, *own_tokenizer.encode_content(LONG_TEXT)][:700]
    assert len(row) == 700 and len(set(row)) > 60
    with torch.no_grad():
        expected = model(torch.tensor([row])).logits[0].numpy()
    tolerance = 2e-4 * np.abs(expected).max()
    np.testing.assert_allclose(our_logits(engine, [row]), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(our_logits(engine, [row[:130], row])[130:], expected, rtol=0, atol=tolerance)


def test_64_greedy_tokens_of_8_prompts(engine, model, own_tokenizer):
    template, sampling = (
        get_template("gemma"),
        SamplingConfig(max_new_tokens=64, temperature=0.0, repetition_penalty=1.0),
    )
    prompts = template.prompts(own_tokenizer, [[{"role": "user", "content": question}] for question in QUESTIONS])
    prompts[2] = [own_tokenizer.bos_id, *own_tokenizer.encode_content(LONG_TEXT)]  # longer than the windows
    answers = generate(engine, prompts, sampling)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == hf_generate(model, prompt)
    assert len({token for answer in answers for token in answer.tokens}) > 64


@pytest.mark.long
def test_perplexity_of_200_validation_rows(engine, model, own_tokenizer, real_data, tmp_path):
    """All tokens of rows in their final form, cut at 512: each row alone in transformers, packed here."""
    validation = (CorpusConfig(name="gemmalm_chinese", limit=200),)
    data = DataConfig(root=str(real_data), validation=validation, sequence_length=512, template="gemmalm_zh")
    prepare(data, own_tokenizer, tmp_path)
    split = PreparedSplit.load(tmp_path / "valid")
    figures = make_evaluator(engine.backbone)(engine.params, evaluation_batches(split, batch_rows=4))
    nll, count, rows = 0.0, 0, 0
    for batch in evaluation_batches(split, batch_rows=1):
        for number in set(batch["row_index"][batch["row_index"] >= 0].tolist()):
            ids = torch.tensor(batch["tokens"][batch["row_index"] == number], dtype=torch.long)
            with torch.no_grad():
                scores = model(ids[None]).logits[0, :-1].double()
            nll += float(torch.nn.functional.cross_entropy(scores, ids[1:], reduction="sum"))
            count, rows = count + len(ids) - 1, rows + 1
    assert rows == 200 and count == figures["tokens_all"]
    assert math.exp(nll / count) == pytest.approx(figures["perplexity_all"], rel=1e-4)
