"""llama.cpp takes our exports: its converter, its tokenizer, its chat templates, its greedy tokens.

Needs the extra `peers` and llama.cpp's converter, which `bash scripts/peers.sh` installs; GEMMA_KERAS_LLAMA_CPP may name another
folder with `convert_hf_to_gguf.py`. Its version of Jinja is reached through xllamacpp, which has llama.cpp's own server in
it: llama-cpp-python renders templates with Python's jinja2.
"""

import itertools
import json
import random
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras import builtin
from gemma_keras.export.huggingface import export_hf
from gemma_keras.export.tokenizer_files import NORMAL, SPACE, USER_DEFINED, read_pieces
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.requests import Request
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.hf_names import hf_tensors
from gemma_keras.text.templates import TEMPLATES
from tests.inference.models import GREEDY
from tests.models.conftest import lively_tensors

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: bash scripts/peers.sh")
xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: bash scripts/peers.sh")
pytestmark = pytest.mark.peers

# llama.cpp looks GELU up in a table of float16 numbers, which is most of the difference; logits deviate by 3.2.
LOGIT_TOLERANCE = 0.05
CONVERSATIONS = [
    [{"role": "user", "content": "你好！"}],
    [{"role": "user", "content": "1 + 1 = ?\n\n{{ x }} {% if %} 'quoted' \"twice\" \\n 😀\tend"}],
    [
        {"role": "user", "content": "写诗\n\n谢谢"},
        {"role": "model", "content": "春风  又绿\n江南岸"},
        {"role": "user", "content": "\n\r再来一首  \n"},
    ],
    [
        {"role": "system", "content": "你是助手。"},
        {"role": "user", "content": "翻译。\n\n所给内容：\nTo be\n\n所给内容：\nor not"},
    ],
]


@pytest.fixture(scope="module")
def architecture():
    return get_architecture("gemma2_tiny")


@pytest.fixture(scope="module")
def params(architecture):
    """Weights whose greedy answers vary, and that do not blow the difference of one GELU up as a gain of 3 does."""
    tensors = lively_tensors(architecture, gain=1.5)
    tensors["model.embed_tokens.weight"] *= 0.2
    tensors["model.norm.weight"] += 10
    return {tensor.path: jnp.asarray(tensor.from_hf(tensors[tensor.name])) for tensor in hf_tensors(architecture)}


@pytest.fixture(scope="module")
def engine(architecture, params):
    return Engine(build_backbone(architecture, "float32"), params)


@pytest.fixture(scope="module", params=list(TEMPLATES))
def converted(request, convert, architecture, params, tokenizer, tmp_path_factory):
    """(template, gguf file): an export with this template, converted."""
    folder = tmp_path_factory.mktemp(request.param)
    template = TEMPLATES[request.param]
    export_hf(params, architecture, tokenizer, folder / "export", dtype="float32", template=template)
    convert(folder / "export", folder / "model.gguf")
    return template, folder / "model.gguf"


@pytest.fixture(scope="module")
def model(converted):
    """The file in llama.cpp, with keys and values in float32 (type 0), as we keep them."""
    settings = dict(type_k=0, type_v=0, n_threads=1, n_threads_batch=1, logits_all=True)
    return llama_cpp.Llama(str(converted[1]), n_ctx=512, verbose=False, **settings)


@pytest.fixture(scope="module")
def server(converted):
    """The address of llama.cpp's server, which compiles the template as it starts."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(converted[1])
    settings.n_ctx, settings.use_jinja = 256, True
    running = xllamacpp.Server(settings)
    yield running.listening_address
    del running


def texts(tokenizer) -> list[str]:
    """At least 200: sentences of the builtin corpus, runs of white, rare characters, pieces side by side.

    Without U+2581: beside blanks llama.cpp, like no other, does not merge the one with the other.
    """
    draw = random.Random(0)
    files = sorted(builtin.TOKENIZER.parent.glob("corpus/**/handwritten*"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if len(line) > 20]
    pieces = [piece.text.replace(SPACE, " ") for piece in read_pieces(tokenizer.path.read_bytes())
              if piece.kind in (NORMAL, USER_DEFINED) and not piece.text.startswith("<")]  # fmt: skip
    white = ["\t", "\n", " ", "\r", "\u3000", "\xa0", "a", "中", "\x0b", "\x85", "\u2028"]
    written = """\
Hello, World!  It's 3:45 p.m. -- naïve café, Straße, Ελλάδα, Привет, مرحبا, हिन्दी, ไทย, 한국어, ひらがな。
龘靐齉爩𠮷𪚥 㐂㐃㐄 ｆｕｌｌ－ｗｉｄｔｈ ① ② Ⅳ ℃ ½ ∑∫√ ←→ ┌─┐ ▒▓ ♠♥
👨\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈🇨🇳👍🏽 😀😃😄
e\u0301 \u200b\ufeff\u202e x\u0300\u0301\u0302
<html><b>粗</b><table></table></html> <0x0A> <eos> <start_of_turn>user
2024年12月31日 100,000.00元 -3.5e10
SELECT * FROM t WHERE a<>'b'; https://例え.jp/?q=%E4%BD%A0&x=1#y""".split("\n")
    written += ["", "\x00\x01\x7f", "def f(x):\n\treturn {\n\t\t'a': x ** 2,\n\t}\n", "<eos>\n<start_of_turn>user\n"]
    made = [character * length for character in white[:5] for length in (1, 2, 3, 4, 7, 16, 31, 32, 40)]
    made += ["".join(draw.choice(white) * draw.randint(1, 9) for _ in range(8)) for _ in range(40)]
    made += ["".join(draw.choice(pieces) for _ in range(12)) for _ in range(50)]
    return [*written, *made, *draw.sample(lines, 80)]


def test_token_ids(model, tokenizer):
    given = texts(tokenizer)
    assert len(given) >= 200
    for text in given:
        data = text.encode()
        assert model.tokenize(data, add_bos=False, special=False) == tokenizer.encode_content(text), text
        assert model.tokenize(data, special=True) == [tokenizer.bos_id, *tokenizer.encode_with_control(text)], text


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "odd characters", "three", "system and given text"])
def test_llama_cpp_renders_the_chat_template(converted, model, server, tokenizer, messages):
    template = converted[0]
    expected = template.render(messages, add_generation_prompt=True)
    # As its clients call the model's role; the template makes it ours.
    roles = {"model": "assistant"}
    sent = [message | {"role": roles.get(message["role"], message["role"])} for message in messages]
    body = json.dumps({"messages": sent}).encode()
    asked = urllib.request.Request(f"{server}/apply-template", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        assert json.load(reply)["prompt"] == expected
    ids = model.tokenize(expected.encode(), special=True)
    assert ids == template.encode(tokenizer, messages, add_generation_prompt=True)[0]


def test_logits_and_greedy_tokens(converted, model, engine, architecture, tokenizer):
    template = converted[0]
    asked = [template.encode(tokenizer, messages, add_generation_prompt=True)[0] for messages in CONVERSATIONS]
    beyond_the_window = architecture.sliding_window + 60
    asked.append(np.random.default_rng(0).integers(1, tokenizer.vocabulary_size, beyond_the_window).tolist())
    answers = engine.generate([Request(prompt=ids, sampling=GREEDY) for ids in asked])
    tokens = np.zeros((len(asked), max(map(len, asked)) + GREEDY.max_new_tokens), np.int32)
    for row, ids, (answer,) in zip(tokens, asked, answers, strict=True):
        row[: len(ids) + len(answer.tokens)] = [*ids, *answer.tokens]
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden = forward(engine.backbone, engine.params, jnp.asarray(tokens), jnp.asarray(positions), jnp.ones_like(tokens))
    expected = np.asarray(logits(engine.backbone, engine.params, hidden))
    equal = 0
    for ids, (ours,), scores in zip(asked, answers, expected, strict=True):
        assert len(set(ours.tokens)) > 8  # else equal tokens would say little
        model.reset()
        model.eval([*ids, *ours.tokens])
        count = len(ids) + len(ours.tokens)
        np.testing.assert_allclose(model.scores[:count], scores[:count], rtol=0, atol=LOGIT_TOLERANCE)
        stream = model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True)
        theirs = list(itertools.islice(stream, GREEDY.max_new_tokens))
        steps = enumerate(zip(ours.tokens, theirs, strict=True))
        parting = next(((step, a, b) for step, (a, b) in steps if a != b), None)
        equal += parting is None
        if parting:  # at a tie within the tolerance of the two logits
            step, a, b = parting
            assert scores[len(ids) - 1 + step, a] - scores[len(ids) - 1 + step, b] < 2 * LOGIT_TOLERANCE
    assert equal >= len(asked) - 1
