"""Requests and answers around bodies that come without them, such as an abstract and its title, anew in every augmentation.

A request is put together from small tables: a task or a question, the verbs and nouns in it, the way to ask for it, and
its place before or after the body. The tables are such that all combinations read well.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gemma_keras.data.hashing import mixed
from gemma_keras.text.templates import Message

Options = tuple[str, ...]

_BARE = "{body}"
_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The tables of one kind of task.

    Attributes:
        tasks: what is to be done, as an imperative with `{slots}`.
        questions: what is asked for, as a question with `{slots}`.
        nouns: what the user's body is, with its measure word; the slot `{text}` is one of them with a demonstrative.
        words: slot -> what it can be.
        answers: what stands around the model's body.
    """

    tasks: Options
    questions: Options
    nouns: Options
    words: Mapping[str, Options]
    answers: Options


_FRAMES = (
    "{}", "请{}", "请你{}", "请帮我{}", "帮我{}", "麻烦你{}", "你能{}吗？", "可以帮我{}吗？", "能不能帮我{}？",
)  # fmt: skip
_BEFORE, _AFTER = ("下面这", "以下这", "这"), ("上面这", "以上这", "这")


def _classification(kinds: Options, labels: Options) -> Wording:
    """Which of `kinds` a paper belongs to; `labels` are written in front of the answer."""
    return Wording(
        tasks=(
            "{judge}{text}属于哪个{kind}",
            "{point}{text}所属的{kind}",
            "把{text}{sort}{proper}{kind}",
            "根据{view}{judge}{text}属于哪个{kind}",
        ),
        questions=("{text}{should}{belong}哪个{kind}？", "从{view}看，{text}属于哪个{kind}？"),
        nouns=("篇论文", "篇文章", "篇文献", "项研究", "篇学术论文"),
        words={
            "judge": ("判断", "分析", "看看", "说说", "说明"),
            "point": ("指出", "给出", "写出", "确定"),
            "sort": ("归入", "划入", "归到"),
            "proper": ("合适的", "恰当的", "相应的", "对应的"),
            "should": ("应该", "应当", "可以"),
            "belong": ("归入", "划入", "归到"),
            "view": ("内容", "主题", "研究对象"),
            "kind": kinds,
        },
        answers=(_BARE,) * 4
        + ("属于{body}。", "它属于{body}。", "应归入{body}。", *(f"{label}：{_BARE}" for label in labels)),
    )


WORDINGS = {
    "title": Wording(
        tasks=(
            "为{text}{write}一个{fitting}{title}",
            "给{text}{write}一个{fitting}{title}",
            "根据{text}{write}一个{fitting}{title}",
            "读一读{text}，然后{write}一个{fitting}{title}",
        ),
        questions=("{text}用什么{title}{good}？", "什么样的{title}{suits}{text}？"),
        nouns=("段摘要", "篇论文摘要", "段论文摘要", "段文字", "段学术文字"),
        words={
            "write": ("拟", "起", "写", "取", "拟定"),
            "fitting": ("", "合适的", "恰当的", "贴切的", "简明的"),
            "title": ("标题", "题目", "论文标题", "论文题目"),
            "good": ("最合适", "比较合适", "比较好"),
            "suits": ("适合", "最适合", "比较适合"),
        },
        answers=(_BARE,) * 4 + ("标题：{body}", "题目：{body}", "建议的题目：{body}", "可以用这个标题：{body}"),
    ),
    "keywords": Wording(
        tasks=(
            "从{text}中{extract}{keywords}",
            "为{text}{list}{keywords}",
            "根据{text}{list}{keywords}",
            "读一读{text}，然后{list}{keywords}",
        ),
        questions=(
            "{text}的{plain}有哪些？",
            "哪些词{can}作为{text}的{plain}？",
            "{text}可以用哪些{plain}来概括？",
        ),
        nouns=("段摘要", "篇论文摘要", "段论文摘要", "篇论文", "段学术文字"),
        words={
            "extract": ("提取", "找出", "抽取", "提炼出", "归纳出"),
            "list": ("列出", "给出", "写出", "选出"),
            "keywords": ("关键词", "几个关键词", "主要的关键词", "核心关键词", "若干关键词"),
            "plain": ("关键词", "主要关键词", "核心关键词"),
            "can": ("可以", "适合", "最适合"),
        },
        answers=(_BARE,) * 4 + ("关键词：{body}", "关键词有：{body}", "关键词包括{body}。", "可以选这些关键词：{body}"),
    ),
    "category": _classification(("学科门类", "学科大类", "门类", "大类"), ("学科门类", "所属门类")),
    "discipline": _classification(("学科", "一级学科", "学科领域"), ("学科", "所属学科")),
    "summary": Wording(
        tasks=(
            "用一句话{sum}{text}{gist}",
            "{briefly}{sum}{text}{gist}",
            "把{text}{condense}成一句话",
            "为{text}{write}一条{short}摘要",
        ),
        questions=("{text}主要讲了{what}？", "{text}的{core}是什么？", "用一句话来说，{text}讲了{what}？"),
        nouns=("则新闻", "段新闻", "篇报道", "段文字", "条消息"),
        words={
            "sum": ("概括", "总结", "归纳", "概述"),
            "gist": ("", "的主要内容", "的大意", "的要点"),
            "briefly": ("简要", "简单", "扼要地", "简短地"),
            "condense": ("概括", "压缩", "浓缩", "归纳", "提炼"),
            "write": ("写", "拟"),
            "short": ("", "简短的", "简明的", "简要的"),
            "what": ("什么", "什么事", "什么内容"),
            "core": ("主要内容", "大意", "要点", "核心内容"),
        },
        answers=(_BARE,) * 4 + ("摘要：{body}", "概括：{body}", "一句话概括：{body}", "概括起来就是：{body}"),
    ),
}
"""By name. CSL: title, keywords, category, discipline; LCSTS: summary."""


def reword(messages: list[Message], wording: str, draw: int) -> list[Message]:
    """The messages with the user's body inside a request and the model's inside an answer.

    Args:
        wording: entry of `WORDINGS`.
        draw: any whole number, of which 64 bits count; the same one words the same messages alike.
    """
    tables, draws = WORDINGS[wording], _Draws(draw)
    written = {"user": _request, "model": _answer}
    return [
        {**message, "content": written[message["role"]](message["content"], tables, draws)}
        if message["role"] in written
        else message
        for message in messages
    ]


class _Draws:
    """Choices that follow from one number: its digits, of the base that each choice needs."""

    def __init__(self, draw: int):
        # Mixed, so that neighbouring numbers choose differently.
        self.rest = int(mixed(np.array([(draw + 0x9E3779B97F4A7C15) % 2**64], np.uint64))[0])

    def choose(self, options: Options) -> str:
        self.rest, place = divmod(self.rest, len(options))
        return options[place]


def _request(body: str, tables: Wording, draws: _Draws) -> str:
    first = draws.choose(("request", "body")) == "request"
    text = draws.choose(_BEFORE if first else _AFTER) + draws.choose(tables.nouns)
    form = draws.choose(tables.tasks + tables.questions)
    frame = draws.choose(_FRAMES) if form in tables.tasks else "{}"
    task = _SLOT.sub(lambda slot: text if slot[1] == "text" else draws.choose(tables.words[slot[1]]), form)
    request = frame.format(task)
    gap = draws.choose(("\n", "\n\n"))
    end = "" if request.endswith("？") else "：" if first else "。"
    return request + end + gap + body if first else body + gap + request + end


def _answer(body: str, tables: Wording, draws: _Draws) -> str:
    return draws.choose(tables.answers).replace(_BARE, body)
