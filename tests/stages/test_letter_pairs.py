"""A model's own answers to exam questions become preference pairs; what is answered is not asked again."""

import json

from gemma_keras.config.sections import CorpusConfig, DataConfig, InferenceConfig, ModelConfig, SamplingConfig
from gemma_keras.config.stages import LetterPairsConfig
from gemma_keras.data.sources import SOURCES
from gemma_keras.stages.letter_pairs import run


def questions(root, count):
    for subject in ("law", "art"):
        folder = root / "ceval" / "val"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{i},{subject}的第{i}题,甲,乙,丙,丁,{'ABCD'[i % 4]}" for i in range(count)]
        (folder / f"{subject}_val.csv").write_text(
            "id,question,A,B,C,D,answer\n" + "\n".join(rows) + "\n", encoding="utf-8"
        )


def test_pairs_of_a_models_own_answers(base, tmp_path, capsys):
    questions(tmp_path / "data", 6)
    config = LetterPairsConfig(
        model=ModelConfig(weights=str(base), dtype="float32"),
        data=DataConfig(root=str(tmp_path / "data"), corpora=(CorpusConfig(name="ceval", path="ceval/val"),)),
        sampling=SamplingConfig(max_new_tokens=12, temperature=1.0, top_p=1.0, seed=1),
        inference=InferenceConfig(max_rows=4),
    )
    work = tmp_path / "work"
    result = run(config, work)
    replies = (work / "replies.jsonl").read_text(encoding="utf-8")
    assert result["questions"] == 12 == len(replies.strip().split("\n"))
    assert result["pairs"] + sum(result["dropped"].values()) == 12

    # As a model would answer that has learnt something: sentences with letters, one bare letter, one without any.
    ids = [json.loads(line)["id"] for line in replies.strip().split("\n")]
    said = ["B", "我不知道。", *(f"答案是 {'ABCD'[i % 4]}。" for i in range(9))]
    lines = [json.dumps({"id": key, "reply": reply}, ensure_ascii=False) + "\n" for key, reply in zip(ids, said)]
    (work / "replies.jsonl").write_text("".join(lines) + '{"id": "cut o', encoding="utf-8")
    again = run(config, work)
    kept = (work / "replies.jsonl").read_text(encoding="utf-8")
    assert kept.startswith("".join(lines)) and len(kept.strip().split("\n")) == 12
    assert again["dropped"].items() >= {"already_a_letter": 1}.items() and again["exactly_a_letter"] == 1
    assert again["train"] + again["valid"] == again["pairs"] >= 9 and again["valid"] == 2
    for name in ("train", "valid"):
        rows = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
        assert len(rows) == again[name]
        for row in rows:
            (pair,) = SOURCES["preference"].read(row)
            assert pair.chosen in "ABCD" and pair.chosen in pair.rejected != pair.chosen
            assert pair.prompt[-1]["content"].endswith("请只回答一个字母：")
