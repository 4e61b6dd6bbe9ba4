"""A model whose replies are written down, and prompts so short that a test can spell out every call.

A reply is chosen by the first word of the call's message: the letter of its prompt in `PROMPTS`. `model.calls` holds, in
order, (message, temperature) of every call, and `model.batches` how many calls came at once.
"""

from collections.abc import Callable, Mapping, Sequence

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig, SolverConfig
from gemma_keras.inference.language_model import Ask, Reply
from gemma_keras.solvers.prompts import load_builtin_prompts, replace_prompts
from gemma_keras.solvers.steps import Settings

NAMES = {
    "answer": "A {question}",
    "plan": "P {question}",
    "plan_strictly": "PS {question}",
    "plan_json": "PJ {question}",
    "first_step": "F {question}|{sub_question}",
    "next_step": "N {question}|{steps}|{number}|{sub_question}",
    "summary": "S {question}|{steps}",
    "judge": "J {question}|{answer}",
    "rewrite": "R {question}|{answer}|{verdict}",
    "complexity": "C {question}",
    "letter": "L {question}|{answer}|{letters}",
    "statement": "ST {question}|{answer}",
    "masked": "M {question}|{statement}",
    "verdict": "V {question}|{statement}",
}
PIECES = {
    "step": "{number}:{sub_question}={answer}",
    "step_in_context": "{sub_question} of {question} [{steps}]",
    "options": "{question} ({options})",
    "final_line": "{question} finally",
}
PROMPTS = replace_prompts(load_builtin_prompts("zh"), NAMES | PIECES, "the script")

PASS = "准确性：通过\n完整性：通过\n逻辑性：通过\n建议：无"
FAIL = "准确性：不通过\n完整性：通过\n逻辑性：通过\n建议：写上单位"
PLAN = "1. a\n2. b\n3. c"

Script = str | Sequence[str] | Callable[[str], str]


class Scripted:
    """Answers by script.

    Args:
        script: prompt letter -> its reply; a list: one reply after another; a function: of the message.
        tokens: of each prompt, and of each reply.
        refused: messages that contain this text are refused.
    """

    def __init__(self, script: Mapping[str, Script], *, tokens: tuple[int, int] = (10, 3), refused: str = "\0"):
        self._script = {
            name: iter(value) if isinstance(value, (list, tuple)) else value for name, value in script.items()
        }
        self._tokens, self._refused = tokens, refused
        self.asks: list[Ask] = []
        self.batches: list[int] = []

    @property
    def calls(self) -> list[tuple[str, float]]:
        return [(content(ask), ask.temperature) for ask in self.asks]

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        refused = [content(ask) for ask in asks if self._refused in content(ask)]
        if refused:
            raise UserError(f"{refused[0]} is refused.")
        self.asks += asks
        self.batches.append(len(asks))
        return [Reply(self._reply(content(ask)), *self._tokens, True) for ask in asks]

    def _reply(self, message: str) -> str:
        scripted = self._script[message.split(" ")[0]]
        if isinstance(scripted, str):
            return scripted
        return scripted(message) if callable(scripted) else next(scripted)  # type: ignore[call-overload]


def content(ask: Ask) -> str:
    (message,) = ask.messages
    assert message["role"] == "user"
    return message["content"]


def settings(*, seed: int = 0, **solver) -> Settings:
    """The recipe's temperatures, with prompts of one letter."""
    sampling = SamplingConfig(max_new_tokens=64, temperature=0.7, top_p=0.9, repetition_penalty=1.2, seed=seed)
    return Settings(solver=SolverConfig(**solver), sampling=sampling, prompts=PROMPTS)
