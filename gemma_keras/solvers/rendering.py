"""A trace as a page to read: Markdown, in Chinese or English."""

import dataclasses

from gemma_keras.solvers.trace import (
    Adapted,
    Backward,
    Candidate,
    Check,
    Decomposed,
    Enhanced,
    Escalated,
    Trace,
    Verified,
    Voted,
    Work,
    route,
)

_LABELS = {
    "question": ("问题", "Question"),
    "solver": ("求解方式", "Solver"),
    "complexity": ("复杂度", "Complexity"),
    "attempt": ("没有读出子问题的一次拆解", "A decomposition without sub-questions"),
    "step": ("子问题", "Sub-question"),
    "draft": ("初步回答", "First answer"),
    "summary": ("汇总", "Summary"),
    "rebuilt": ("根据改进后的步骤重新汇总", "Summary of the improved steps"),
    "accepted": ("审阅：无需修改", "Verdict: nothing to change"),
    "criticised": ("审阅：需要修改", "Verdict: to be changed"),
    "rewrite": ("改写", "Rewritten"),
    "checked": ("对最终回答的审阅", "Verdicts on the final answer"),
    "samples": ("抽样", "Samples"),
    "vote": ("结论", "conclusion"),
    "failed": ("失败", "failed"),
    "majority": ("多数结论", "Majority"),
    "share": ("占比", "share"),
    "candidate": ("候选答案", "Candidate"),
    "statement": ("结论陈述", "Statement"),
    "recovered": ("还原成功", "recovered"),
    "lost": ("还原失败", "not recovered"),
    "score": ("得分", "score"),
    "answer": ("答案", "Answer"),
    "letter": ("选项", "Option"),
    "failure": ("未能完成", "Not finished"),
    "stopped": ("预算用尽而停止", "Stopped at the end of the budget of"),
    "calls": ("次数", "calls"),
    "tokens": ("token 数", "tokens"),
    "seconds": ("时间", "seconds"),
    "cost": (
        "调用 {calls} 次，输入 {prompt_tokens:,} 个 token，输出 {new_tokens:,} 个 token，{seconds:.1f} 秒",
        "{calls} calls, {prompt_tokens:,} tokens of prompts, {new_tokens:,} of answers, {seconds:.1f} s",
    ),
    "cut": ("，其中 {cut} 个回答因达到长度上限被截断", "; {cut} answers were cut off at the greatest length"),
    "colon": ("：", ": "),
}
LABELS = {
    language: {name: texts[index] for name, texts in _LABELS.items()} for index, language in enumerate(("zh", "en"))
}


def render(trace: Trace, language: str = "zh") -> str:
    """The whole trace as Markdown: question, steps with their verdicts, answer, cost."""
    return "\n\n".join(_Page(LABELS[language]).blocks(trace)) + "\n"


class _Page:
    """Writes the blocks of one trace with the labels of one language."""

    def __init__(self, labels: dict[str, str]):
        self._labels = labels

    def blocks(self, trace: Trace) -> list[str]:
        question = trace.question
        blocks = [f"## {self._pair('question', question.text)}"]
        if question.choices:
            options = zip(question.letters, question.choices)
            blocks.append("\n".join(f"- {letter}. {choice}" for letter, choice in options))
        blocks += [self._bold("solver", route(trace.work, trace.solver)), *self._work(trace.work)]
        if trace.failure:
            blocks.append(self._bold("failure", trace.failure))
        if trace.stopped:
            blocks.append(self._bold("stopped", self._labels[trace.stopped]))
        blocks += [f"### {self._labels['answer']}", trace.answer or "—"]
        if trace.letter:
            blocks.append(self._bold("letter", trace.letter))
        cost = self._labels["cost"] + (self._labels["cut"] if trace.cost.cut else "")
        return [*blocks, f"*{cost.format(**dataclasses.asdict(trace.cost))}*"]

    def _work(self, work: Work) -> list[str]:
        """The steps between question and answer; none for a single answer."""
        match work:
            case Decomposed():
                return self._decomposed(work)
            case Verified(check=check) if check:
                return [f"### {self._labels['draft']}", check.original, *self._check(check)]
            case Enhanced():
                return self._enhanced(work)
            case Adapted(complexity=complexity) if complexity is not None:
                score = self._bold("complexity", f"{complexity:g}")
                return [score, *(self._work(work.work) if work.work else [])]
            case Voted():
                return self._voted(work)
            case Escalated():
                return [block for stage in work.stages for block in self._voted(stage)]
            case Backward():
                return [*self._voted(work.voted), *(block for one in work.candidates for block in self._candidate(one))]
        return []

    def _decomposed(self, work: Decomposed) -> list[str]:
        blocks = []
        for attempt in work.attempts[:-1] if work.steps else work.attempts:
            blocks += [f"### {self._labels['attempt']}", _quote(attempt)]
        for number, step in enumerate(work.steps, 1):
            blocks += [f"### {self._pair('step', step.question, number)}", step.first_answer or "—"]
            blocks += self._check(step.check) if step.check else []
        return blocks

    def _enhanced(self, work: Enhanced) -> list[str]:
        blocks = self._decomposed(work.decomposed)
        for name, text in (("summary", work.decomposed.summary), ("rebuilt", work.rebuilt)):
            blocks += [f"### {self._labels[name]}", text] if text else []
        return [*blocks, f"### {self._labels['checked']}", *self._check(work.check)] if work.check else blocks

    def _check(self, check: Check) -> list[str]:
        blocks = []
        for index, verdict in enumerate(check.verdicts):
            label = self._labels["accepted" if verdict.accepted else "criticised"]
            blocks += [f"**{label}**", _quote(verdict.text)]
            if index < len(check.rewrites):
                blocks += [f"**{self._labels['rewrite']}**", check.rewrites[index]]
        return blocks

    def _voted(self, work: Voted) -> list[str]:
        lines = []
        for number, sample in enumerate(work.samples, 1):
            outcome = self._pair("failed", sample.failure) if sample.failure else self._pair("vote", sample.vote or "—")
            lines.append(f"{number}. {outcome}")
        share = f"{self._labels['share']} {work.votes()[work.vote]}/{work.planned}"
        majority = self._bold("majority", f"{work.vote or '—'} ({share})")
        return [f"### {self._labels['samples']} ({work.solver})", "\n".join(lines), majority]

    def _candidate(self, candidate: Candidate) -> list[str]:
        lines = [
            f"- {_join_lines(one.question)} — {one.expected} — {self._labels['recovered' if one.found else 'lost']}"
            for one in candidate.recoveries
        ]
        score = f"{self._labels['score']} {candidate.score}/{len(candidate.recoveries)}"
        heading = f"### {self._pair('candidate', candidate.vote)} ({score})"
        return [heading, self._bold("statement", candidate.statement), "\n".join(lines)]

    def _pair(self, label: str, text: str, number: int | None = None) -> str:
        counted = f"{self._labels[label]} {number}" if number is not None else self._labels[label]
        return f"{counted}{self._labels['colon']}{_join_lines(text)}"

    def _bold(self, label: str, text: str) -> str:
        return f"**{self._labels[label]}**{self._labels['colon']}{_join_lines(text)}"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in (text or "—").split("\n"))


def _join_lines(text: str) -> str:
    return " ".join(text.split())
