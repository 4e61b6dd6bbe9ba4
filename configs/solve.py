"""Answers in several steps: decomposition, verification, samples that are compared.

Launch: python -m scripts.solve --config=configs/solve.py --workdir=DIR --config.model.weights=MODEL \\
    --config.solver=adaptive --config.questions=QUESTION
Several questions: repeat --config.questions, or give --config.solver.input=FILE or standard input: one question a line, JSON,
csv, tsv or parquet.
Hardware: any. Expected: answers.jsonl, traces.jsonl and traces.md in DIR; a question takes 1 call (normal) to about 20
(enhanced), each as long as an answer of `scripts.chat`.

Numbers and names of the question come back in every step, so there is no repetition penalty here.
"""

from gemma_keras.config.sections import SamplingConfig
from gemma_keras.config.stages import SolveConfig


def get_config() -> SolveConfig:
    return SolveConfig(sampling=SamplingConfig(max_new_tokens=512, temperature=0.7, top_p=0.95, repetition_penalty=1.0))
