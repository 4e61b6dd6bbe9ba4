"""Corpora of requests and their answers. All but a few have Alpaca's keys, or spell them in another way."""

import re
from collections.abc import Callable
from typing import Any

from gemma_keras.data.records import BadRow, ChatRecord, Record, SkippedRow
from gemma_keras.data.sources.base import Corpus, Row, answer, column, list_of, model, optional_text, parsed, text, user
from gemma_keras.data.sources.turns import CHINESE, NO_ANSWER, alpaca, columns, conversation, marked_turns, with_input

_instruction = alpaca("instruction")


def _belle(row: Row) -> list[Record]:
    # Instructions of the half million end in a backslash and an n, as text.
    return _instruction(row | {"instruction": text(row, "instruction").rstrip().removesuffix("\\n")})


def _belle_chat(row: Row) -> list[Record]:
    questions, answers = list_of(row, "input", str), list_of(row, "output", str)
    if len(questions) != len(answers) or not questions:
        raise BadRow("input and output are not lists of equal length")
    pairs = zip(questions, answers, strict=True)
    return conversation([turn for asked, said in pairs for turn in (("user", asked), ("model", said))], "dialogue")


def _belle_csv(row: Row) -> list[Record]:
    said = text(row, "text").strip()
    if not said.startswith("<s>") or not said.endswith("</s>"):
        raise BadRow("text is not made of <s>Human: ...</s><s>Assistant: ...</s>")
    messages = []
    for turn in said[3:-4].split("</s><s>"):
        name, colon, content = turn.partition(": ")
        if not colon or name not in ("Human", "Assistant"):
            raise BadRow("text is not made of <s>Human: ...</s><s>Assistant: ...</s>")
        messages.append((user if name == "Human" else model)(content.removesuffix("\n")))
    return [ChatRecord(messages=messages, type="instruction")]


def _belle_seed_tasks(row: Row) -> list[Record]:
    instruction = text(row, "instruction")
    return [
        record
        for instance in list_of(row, "instances", dict)
        for record in answer(
            with_input(instruction, optional_text(instance, "input")), text(instance, "output"), "instruction"
        )
    ]


def _belle_eval_set(row: Row) -> list[Record]:
    reply = optional_text(row, "std_answer")
    if not reply.strip():
        raise SkippedRow(NO_ANSWER)
    return answer(text(row, "question"), reply, "instruction")


def _alpaca_cot(row: Row) -> list[Record]:
    # Line breaks inside the questions are a backslash and an n, as text; none of these questions is about code.
    question, reply = (text(row, key).replace("\\n", "\n") for key in ("instruction", "output"))
    return answer(with_input(question, optional_text(row, "input")), reply, "instruction")


def _instruction_wild(row: Row) -> list[Record]:
    if row.get("output") is None:
        raise SkippedRow(NO_ANSWER)
    return _instruction(row)


_GUANACO_TURN = re.compile(r"^[ \t]*(System|User|Assistant)[ \t]*[:：]", re.MULTILINE)


def _guanaco(row: Row) -> list[Record]:
    earlier, asked = text(row, "instruction"), optional_text(row, "input")
    if not _GUANACO_TURN.match(earlier.lstrip()) and not _GUANACO_TURN.match(asked.lstrip()):
        return _instruction(row)
    turns = [turn for said in (earlier, asked) for turn in _guanaco_turns(said)]
    knowledge = "\n".join(content for name, content in turns if name == "System" and content)
    reply = text(row, "output").strip().removeprefix("Assistant:").lstrip()
    return conversation(
        [("system", knowledge), *(turn for turn in turns if turn[0] != "System"), ("model", reply)], "dialogue"
    )


def _guanaco_turns(said: str) -> list[tuple[str, str]]:
    if not said.strip():
        return []
    return marked_turns(said, _GUANACO_TURN) if _GUANACO_TURN.match(said.lstrip()) else [("User", said)]


def _coig_exam(row: Row) -> list[Record]:
    asked = (optional_text(row, "textbox_q_" + part) for part in ("instruction", "context"))
    question = "\n".join(part for part in (*asked, text(row, "textbox_question")) if part.strip())
    reply, analysis = text(row, "textbox_answer"), row.get("textbox_answer_analysis")
    if isinstance(analysis, str) and analysis.strip():  # an empty list where there is none
        reply = f"答案：{reply}\n解析：{analysis}"
    return answer(question, reply, "exam")


def _coig_rounds(row: Row) -> list[tuple[str, str]]:
    """Rounds whose response is itself JSON, `{"Q": ..., "A": ...}`; the dialogue ends before the first that is not."""
    turns: list[tuple[str, str]] = []
    number = 0
    while isinstance(row.get(f"round_{number}"), dict):
        response = parsed(row[f"round_{number}"].get("response"))
        if not isinstance(response, dict):
            break
        turns += [("user", text(response, "Q")), ("model", text(response, "A"))]
        number += 1
    return turns


_COIG = (
    ("round_0", "counterfactual", lambda row: conversation(_coig_rounds(row), "dialogue")),
    (
        "trans_instruction",
        "translated",
        columns("instruction", ("trans_instruction",), ("trans_output",), ("trans_input",)),
    ),
    ("textbox_question", "exam", _coig_exam),
    ("program_lang", "leetcode", alpaca("code")),
    ("instruction", "value_alignment", alpaca("safety")),
)
"""Of COIG's files: a key that only the rows of this one have (the last: that remain), their kind, and how they are read."""


def _coig_file(row: Row) -> tuple[str, str, Callable[[Row], list[Record]]]:
    return next((entry for entry in _COIG if row.get(entry[0]) is not None), _COIG[-1])


FIREFLY_TYPES = {
    "StoryGeneration": "story_generation",
    **dict.fromkeys(("NLI", "TextMatching", "SentimentAnalyze"), "classification"),
    **dict.fromkeys(("NER", "KeywordRecognition"), "extraction"),
    **dict.fromkeys(("AncientPoem", "Couplet"), "ancient_poetry_creation"),
    "ClassicalChinese": "classical_translation",
    "Translation": "translation",
    "Summary": "summary",
    "MRC": "reading",
    "Cot": "reasoning",
    "Program": "code",
    **dict.fromkeys(
        ("Composition", "JinYongGeneration", "LyricGeneration", "MusicComment", "ProductDesc", "ProseGeneration"),
        "writing",
    ),
}
"""Type of the records of a kind of Firefly; "instruction" for the others (such as BELLE, Dictionary, OpenQA)."""


def _firefly(row: Row) -> list[Record]:
    kind, question = text(row, "kind"), text(row, "input")
    if kind == "StoryGeneration":  # of the stories, input is the subject only
        question = f"按照下面的要求讲一个故事：\n{question}"
    return answer(question, text(row, "target"), FIREFLY_TYPES.get(kind, "instruction"))


def _mathglm(row: Row) -> list[Record]:
    if row.get("question") is not None:
        return answer(text(row, "question"), text(row, "answer"), "math")
    expression, equals, result = text(row, "text").strip().partition("=")
    if not equals:
        raise BadRow("no = in the line")
    if not result:
        raise SkippedRow(NO_ANSWER)
    return answer(f"{expression}=", result, "math")


def _qizhen_eval(row: Row) -> list[Record]:
    diseases = text(row, "医学专家标注的适应病症")
    return answer(text(row, "instruction"), "、".join(filter(None, diseases.split("|"))), "medical")


def _safety_prompts(row: Row) -> list[Record]:
    # The published files are one object each, and so one row.
    entries = [row] if "prompt" in row else [entry for scenario in row for entry in list_of(row, scenario, dict)]
    if not entries:
        raise BadRow("no prompt, nor lists of them by scenario")
    return [record for entry in entries for record in answer(text(entry, "prompt"), text(entry, "response"), "safety")]


def _advgen(row: Row) -> list[Record]:
    question = f"根据下面的商品特征写一段推广文案：\n{text(row, 'content', 'input')}"
    return answer(question, text(row, "summary", "output"), "writing")


IDENTITY = {
    True: {"{{name}}": "Gemma 中文助手", "{{author}}": "Gemma Keras 项目组"},
    False: {"{{name}}": "Gemma Chinese Assistant", "{{author}}": "the Gemma Keras team"},
}
"""What the rows of `identity` call the model and its makers, in Chinese (True) and other rows."""

_as_identity = alpaca("identity")
_PLACEHOLDER = re.compile("{{name}}|{{author}}")


def _identity(row: Row) -> list[Record]:
    reply = text(row, "output")
    names = IDENTITY[CHINESE.search(reply) is not None]
    filled = {
        key: _PLACEHOLDER.sub(lambda found: names[found[0]], said)
        for key, said in (("instruction", text(row, "instruction")), ("output", reply))
    }
    return _as_identity(row | filled)


_KEYS = "instruction, input, output"
_NO_LICENCE = "none stated"
_NON_COMMERCIAL = "CC BY-NC 4.0"
_BELLE = "GPL-3.0, research use"
_GPT4_LLM = "github:Instruction-Tuning-with-GPT-4/GPT-4-LLM"

_CONSULTATION = columns("medical", ("query",), ("response",))


def _alpaca(name: str, type: str = "instruction", **more: Any) -> Corpus:
    """A corpus of Alpaca's keys."""

    return Corpus(**{"name": name, "read": alpaca(type), "type": type, "schema": _KEYS, **more})


SOURCES: tuple[Corpus, ...] = (
    Corpus(name="belle", read=_belle, type="instruction", places=("belle", "belle_school_math"),
           hub_id="BelleGroup/train_1M_CN", licence=_BELLE, schema=_KEYS),
    Corpus(name="belle_05m", read=_belle, type="instruction", hub_id="BelleGroup/train_0.5M_CN", licence=_BELLE,
           places=("belle_05m", "belle_sample_chinese_vicuna/instruct"), schema=_KEYS),
    Corpus(name="belle_chat", read=_belle_chat, type="dialogue", licence="Apache-2.0", schema="input: [str], output: [str]",
           places=("belle_chat", "belle_sample_chinese_vicuna/chat"), hub_id="github:Facico/Chinese-Vicuna"),
    Corpus(name="belle_csv", read=_belle_csv, type="instruction", places=("belle_csv", "belle_llama_chinese_csv"),
           hub_id="github:LlamaFamily/Llama-Chinese", licence=_NO_LICENCE,
           schema="text: <s>Human: ...\\n</s><s>Assistant: ...\\n</s>"),
    Corpus(name="belle_seed_tasks", read=_belle_seed_tasks, type="instruction", hub_id="github:LianjiaTech/BELLE",
           licence=_BELLE, schema="instruction, instances: [{input, output}]"),
    Corpus(name="belle_eval_set", read=_belle_eval_set, type="instruction", hub_id="github:LianjiaTech/BELLE",
           licence=_BELLE, schema="question, std_answer (may be empty), class"),
    _alpaca("alpaca", licence="the file's", schema=f"{_KEYS}; system, history: [[question, answer]] where there are any"),
    Corpus(name="alpaca_gpt4_zh", type="instruction", hub_id="silk-road/alpaca-data-gpt4-chinese", licence=_NON_COMMERCIAL,
           read=columns("instruction", ("instruction_zh", "instruction"), ("output_zh", "output"), given=("input_zh", "input")),
           schema=f"instruction_zh, input_zh, output_zh; or {_KEYS}"),
    _alpaca("gpt4_llm_zh", places=("gpt4_llm_zh", "alpaca_gpt4_zh/alpaca_gpt4_data_zh.json"), hub_id=_GPT4_LLM,
            licence=_NON_COMMERCIAL),
    _alpaca("alpaca_gpt4_en", hub_id=_GPT4_LLM, licence=_NON_COMMERCIAL),
    _alpaca("alpaca_chinese", places=("alpaca_chinese", "alpaca_chinese_carbonz0"),
            hub_id="github:carbonz0/alpaca-chinese-dataset", licence=_NON_COMMERCIAL),
    Corpus(name="alpaca_cot", read=_alpaca_cot, type="instruction", hub_id="QingyiSi/Alpaca-CoT", licence="ODC-By",
           schema=_KEYS),
    Corpus(name="guanaco", read=_guanaco, hub_id="JosephusCheung/GuanacoDataset", licence="GPL-3.0",
           schema="instruction (in chats User: ... Assistant: ...), input (System: ... User: ...), output"),
    Corpus(name="coig", hub_id="BAAI/COIG", licence="Apache-2.0",
           read=lambda row: _coig_file(row)[2](row), kind=lambda row: _coig_file(row)[1],
           schema=f"by file: {_KEYS}; trans_instruction, trans_input, trans_output; textbox_q_instruction, "
           "textbox_q_context, textbox_question, textbox_answer, textbox_answer_analysis; "
           "round_0: {response: JSON of Q, A}, round_1, ..."),
    Corpus(name="instruction_wild", read=_instruction_wild, type="instruction", schema=_KEYS,
           hub_id="github:XueFuzhao/InstructionWild", licence="non-commercial research"),
    Corpus(name="firefly", read=_firefly, hub_id="YeungNLP/firefly-train-1.1M", schema="kind, input, target",
           kind=column("kind"), kinds=("StoryGeneration",)),
    _alpaca("tigerbot", places=("tigerbot", "tigerbot_medical"), hub_id="TigerResearch/sft_zh", licence="Apache-2.0"),
    _alpaca("deepctrl_sft", hub_id="modelscope:deepctrl/deepctrl-sft-data", licence="Apache-2.0",
            schema=f"{_KEYS}, history: [[question, answer]]"),
    _alpaca("code_alpaca", "code", hub_id="github:sahil280114/codealpaca", licence=_NON_COMMERCIAL),
    _alpaca("python_code_instructions", "code", licence=_NO_LICENCE, places=("python_code_instructions", "code_alpaca"),
            hub_id="iamtarun/python_code_instructions_18k_alpaca", schema=f"{_KEYS}, prompt (the three in one; not read)"),
    Corpus(name="mathglm", read=_mathglm, type="math", hub_id="github:THUDM/MathGLM", licence=_NO_LICENCE,
           schema="question, answer; or lines expression=steps=result"),
    _alpaca("qizhengpt", "medical", places=("qizhengpt", "huatuo_llama_med"), hub_id="github:CMKRG/QiZhenGPT",
            licence="GPL-3.0, academic use"),
    Corpus(name="qizhen_eval", read=_qizhen_eval, type="medical", licence="GPL-3.0, academic use",
           hub_id="github:CMKRG/QiZhenGPT", schema="药品, 药品适应症, 医学专家标注的适应病症 (a|b), instruction"),
    _alpaca("huatuo", "medical", places=("huatuo", "huatuo_llama_med"), licence="Apache-2.0",
            hub_id="github:SCIR-HI/Huatuo-Llama-Med-Chinese"),
    Corpus(name="chatmed", read=_CONSULTATION, type="medical", places=("chatmed", "chatmed_consult"),
           hub_id="michaelwzhu/ChatMed_Consult_Dataset", licence="academic use", schema="query, response"),
    Corpus(name="shennong_tcm", read=_CONSULTATION, type="medical", places=("shennong_tcm", "chatmed_consult"),
           hub_id="michaelwzhu/ShenNong_TCM_Dataset", licence="Apache-2.0", schema="query, response"),
    Corpus(name="safety_prompts", read=_safety_prompts, type="safety", hub_id="thu-coai/Safety-Prompts",
           licence="Apache-2.0", schema="{scenario: [{prompt, response, type}]}"),
    Corpus(name="advgen", read=_advgen, type="writing", places=("advgen", "advgen_toy"),
           schema="content, summary; or input, output"),
    Corpus(name="identity", read=_identity, type="identity", places=("identity", "identity_template"),
           hub_id="github:hiyouga/LLaMA-Factory", licence="Apache-2.0",
           schema=f"{_KEYS} with {{{{name}}}} and {{{{author}}}}, which become names of this project"),
)  # fmt: skip
