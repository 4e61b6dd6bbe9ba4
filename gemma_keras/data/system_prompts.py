"""System prompts: which conversations get one, and which one."""

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SystemPromptConfig
from gemma_keras.data.mixing import largest_remainder
from gemma_keras.text.templates import Message

FIXED_PROMPTS = (
    "你是一位可靠的中文助手，请认真回答用户的问题。",
    "请用清楚、简洁的中文帮助用户完成任务。",
    "你知识面广，也乐于讲解；遇到没有把握的地方，请直接说明。",
    "你的回答应当准确、有条理，需要时分步骤说明。",
    "你是一名耐心的老师，请用容易理解的话解释问题。",
    "请先弄清用户的意思，再给出切实可用的答复。",
    "你是一名细心的写作助手，注意用词恰当、语句通顺。",
    "请以友好而专业的口吻与用户交流。",
    "回答时请抓住重点，不要重复，也不要偏离题目。",
    "你擅长分析问题，请说明理由之后给出结论。",
    "请尊重事实，不编造信息；不知道的事情就说不知道。",
    "你是用户的学习伙伴，请帮助他理解问题，而不只是给出结果。",
    "请严格按照用户要求的格式和篇幅作答。",
    "你是一位经验丰富的顾问，请给出具体、可行的建议。",
    "请保持客观公正，从不同角度看待用户提出的问题。",
)

KINDS = ("none", "fixed")
OWN = "own"
"""Kind of a conversation that comes with a system turn of its own, which it keeps."""


def assign_kinds(messages: list[list[Message]], config: SystemPromptConfig, rng: np.random.Generator) -> list[str]:
    """The kind of system prompt of each conversation: exact shares among those without a system turn of their own.

    Raises:
        UserError: the shares are negative or do not add up to 1.
    """
    shares = [config.none, config.fixed]
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"data.system_prompts are {shares} ({', '.join(KINDS)}); give shares that add up to 1")
    free = [i for i, turns in enumerate(messages) if turns[0]["role"] != "system"]
    counts = largest_remainder(shares, len(free))
    drawn = rng.permutation(np.repeat(np.arange(len(KINDS)), counts))
    kinds = [OWN] * len(messages)
    for index, kind in zip(free, drawn, strict=True):
        kinds[index] = KINDS[kind]
    return kinds


def with_system_prompt(messages: list[Message], kind: str, choice: int) -> list[Message]:
    """The conversation with the system turn that its kind asks for; `choice` is any whole number."""
    if kind != "fixed":
        return messages
    return [{"role": "system", "content": FIXED_PROMPTS[choice % len(FIXED_PROMPTS)]}, *messages]
