"""What of a corpus is not used is told: on the terminal, in the report, and as the error where nothing is left."""

import json

import datasets
import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CleaningConfig, CorpusConfig, DataConfig, SystemPromptConfig
from gemma_keras.data.pipeline import PreparedSplit, evaluation_batches
from gemma_keras.data.pools.collecting import training_texts
from gemma_keras.data.prepare import prepare
from gemma_keras.text.templates import CLOSING, CONTENT, PADDING, PROMPT, TEMPLATES, UNLEARNT


def put(root, name, rows):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dialogue(number, *more):
    return {
        "messages": [
            {"role": "user", "content": f"第{number}问"},
            *more,
            {"role": "assistant", "content": f"第{number}答"},
        ]
    }


def run(root, tokenizer, out, *names, **more):
    told = []
    corpora = tuple(CorpusConfig(name=name) for name in names)
    config = DataConfig(root=str(root), corpora=corpora, **{"sequence_length": 128, **more})
    return prepare(config, tokenizer, out, progress=told.append), told


def test_rows_that_cannot_be_read_are_told_with_the_commonest_reason(tokenizer, tmp_path):
    call = {"role": "function_call", "content": "{}"}
    seen = {"role": "assistant", "content": [{"type": "image_url"}]}
    rows = [
        *map(dialogue, range(91)),
        *(dialogue(n, call) for n in range(150)),
        *(dialogue(n, seen) for n in range(59)),
    ]
    put(tmp_path / "c", "messages/a.jsonl", rows)
    report, told = run(tmp_path / "c", tokenizer, tmp_path / "out", "messages")
    (line,) = [line for line in told if "set aside" in line]
    assert line == (
        "messages: 209 of 300 rows are set aside: 209 cannot be read (150 the role 'function_call' is not known, 59 content has "
        "a part of type image_url, but only text is read); see quarantine.jsonl"
    )
    assert list(report["quarantined_for"].values()) == [150, 59]
    assert "| quarantined_for |" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_rows_that_rules_remove_are_told_where_they_are_many(tokenizer, tmp_path):
    put(tmp_path / "c", "messages/a.jsonl", [*map(dialogue, range(10)), *map(dialogue, range(5))])
    long = {"messages": [{"role": "user", "content": "长" * 200}, {"role": "assistant", "content": "答"}]}
    put(tmp_path / "c", "sharegpt/a.jsonl", [*map(dialogue, range(20, 30)), *[long | {"n": n} for n in range(3)]])
    _, told = run(
        tmp_path / "c", tokenizer, tmp_path / "out", "messages", "sharegpt", cleaning=CleaningConfig(duplicates=True)
    )
    lines = [line for line in told if "set aside" in line]
    assert lines[0] == "messages: 5 of 15 rows are set aside: 5 are removed (5 duplicate)"
    assert (
        "sharegpt: 3 of 13 rows are set aside: 3 are removed (2 duplicate, 1 no_answer_within_sequence_length)" in lines
    )
    assert len(lines) == len(set(lines))


def test_a_clean_corpus_is_not_spoken_of(tokenizer, tmp_path):
    put(tmp_path / "c", "messages/a.jsonl", [*map(dialogue, range(30)), dialogue(1)])
    _, told = run(tmp_path / "c", tokenizer, tmp_path / "out", "messages", validation_rows=10)
    assert not [line for line in told if "set aside" in line or "not read" in line]


def test_files_that_are_not_read_are_told_and_reported(tokenizer, tmp_path):
    put(tmp_path / "c", "messages/a.jsonl", map(dialogue, range(5)))
    for name in (".ipynb_checkpoints/a.jsonl", ".git/x.jsonl", "b.zip", "c.jsonl.bz2"):
        put(tmp_path / "c", f"messages/{name}", [dialogue(7)])
    (tmp_path / "c" / "messages" / "gone.jsonl").symlink_to("nowhere")
    report, told = run(tmp_path / "c", tokenizer, tmp_path / "out", "messages")
    said = (
        "not read: messages/.git, messages/.ipynb_checkpoints (hidden), messages/b.zip, messages/c.jsonl.bz2 (of a format that "
        "is not read), messages/gone.jsonl (a broken link)"
    )
    assert f"messages: {said}" in told and report["rows_in"] == 5
    assert said in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert len(report["corpora"]["messages"]["not_read"]) == 5


def test_a_pointer_is_never_trained_on(tokenizer, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "c" / "text").mkdir(parents=True)
    (tmp_path / "c" / "text" / "a.txt").write_text(pointer)
    with pytest.raises(UserError, match=r"1 a Git LFS pointer, not the data \(run git lfs pull where it was cloned\)"):
        run(tmp_path / "c", tokenizer, tmp_path / "out", "text")
    (tmp_path / "c" / "text" / "b.txt").write_text("一行。\n又一行。\n", encoding="utf-8")
    report, told = run(tmp_path / "c", tokenizer, tmp_path / "out", "text")
    assert (report["used"], report["quarantined"]) == (2, 1)
    assert any("1 a Git LFS pointer, not the data (run git lfs pull" in line for line in told)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"messages": [{"role": "tool", "content": "x"}]}] * 3,
            "of 3 rows 3 cannot be read .3 the role 'tool' is not known",
        ),
        ([{"messages": [{"role": "user", "content": "x"}]}] * 3, "of 3 rows 3 are removed .3 one_sided"),
        ([{"messages": [turn | {"loss": False} for turn in dialogue(1)["messages"]]}], "nothing_to_learn"),
    ],
)
def test_a_corpus_of_which_nothing_is_left_is_the_error_also_for_a_tokenizer(tokenizer, tmp_path, rows, message):
    put(tmp_path / "c", "messages/a.jsonl", rows)
    with pytest.raises(UserError, match=f"no usable row of corpus 'messages' .*{message}"):
        run(tmp_path / "c", tokenizer, tmp_path / "out", "messages")
    config = DataConfig(root=str(tmp_path / "c"), corpora=(CorpusConfig(name="messages"),))
    with pytest.raises(UserError, match=f"no usable row of corpus 'messages' .*{message}"):
        list(training_texts(config))


def test_empty_rows_alone_train_no_tokenizer(tmp_path):
    empty = {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": ""}]}
    put(tmp_path / "c", "messages/a.jsonl", [empty])
    config = DataConfig(root=str(tmp_path / "c"), corpora=(CorpusConfig(name="messages"),))
    with pytest.raises(UserError, match="1 are removed .1 empty"):
        list(training_texts(config))


MARKED = [
    {"role": "system", "content": "听话"},
    {"role": "user", "content": "一"},
    {"role": "assistant", "content": "错的", "weight": 0},
    {"role": "user", "content": "二", "loss": False},
    {"role": "assistant", "content": "对的", "weight": 1},
]


@pytest.mark.parametrize("template", ["gemmalm_zh", "gemma", "passage", "instruction"])
def test_turns_not_to_be_learnt_carry_no_loss(tokenizer, tmp_path, template):
    put(tmp_path / "c", "messages/a.jsonl", [{"messages": MARKED}])
    report, _ = run(tmp_path / "c", tokenizer, tmp_path / "out", "messages", template=template)
    assert report["unlearnt"] == 1
    split = PreparedSplit.load(tmp_path / "out" / "train")
    for loss_on, learnt in (("response", "对的"), ("all", "一对的")):
        (batch,) = evaluation_batches(split, batch_rows=1, loss_on=loss_on)
        said = tokenizer.decode(batch["targets"][0][batch["loss_weights"][0] > 0].tolist())
        assert "错" not in said and "二" not in said
        assert all(character in said for character in learnt)
    # In the place of the same kinds as without marks.
    plain = [{"role": turn["role"].replace("assistant", "model"), "content": turn["content"]} for turn in MARKED]
    ids, kinds = TEMPLATES[template].encode(tokenizer, plain)
    assert split.tokens[0].tolist() == ids
    changed = np.array(kinds) != split.kinds[0]
    assert set(split.kinds[0][changed]) == {PADDING} and {PROMPT, CONTENT, CLOSING} <= set(split.kinds[0][~changed])


def test_marks_come_through_to_a_later_stage_and_survive_cutting(tokenizer, tmp_path):
    rows = [{"messages": [{**turn, "content": turn["content"] + str(n)} for turn in MARKED]} for n in range(6)]
    late = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "错", "train": False},
            {"role": "user", "content": "长" * 200}, {"role": "assistant", "content": "对"}]  # fmt: skip
    put(tmp_path / "c", "messages/a.jsonl", [*rows, {"messages": late}])
    report, _ = run(tmp_path / "c", tokenizer, tmp_path / "one", "messages", validation_rows=1)
    assert report["removed"] == {"no_answer_within_sequence_length": 1, "set_apart_for_validation": 1}
    prompts = SystemPromptConfig(none=0, fixed=1)
    run(
        tmp_path / "c",
        tokenizer,
        tmp_path / "two",
        "messages",
        earlier=(str(tmp_path / "one"),),
        system_prompts=prompts,
    )
    records = [json.loads(record) for record in datasets.load_from_disk(str(tmp_path / "two" / "train"))["record"]]
    assert len(records) == 5
    assert all([UNLEARNT.items() <= turn.items() for turn in r["messages"]] == [0, 0, 1, 1, 0] for r in records)


def test_the_same_conversation_with_other_turns_to_learn_is_no_duplicate(tokenizer, tmp_path):
    turns = [{"role": ("user", "assistant")[i % 2], "content": said * 8} for i, said in enumerate("甲乙丙丁")]
    copies = [
        {"messages": [turn | ({"loss": i == learnt} if i % 2 else {}) for i, turn in enumerate(turns)]}
        for learnt in (1, 3, 3)
    ]
    put(tmp_path / "c", "messages/a.jsonl", copies)
    cleaning = CleaningConfig(near_duplicates=0.8)
    report, _ = run(tmp_path / "c", tokenizer, tmp_path / "out", "messages", cleaning=cleaning)
    assert (report["records"], report["removed"]) == (2, {"duplicate": 1})


def test_an_empty_system_turn_leaves_room_for_one_of_ours(tokenizer, tmp_path):
    rows = [{"conversations": [{"from": "system", "value": said}]} for said in ("", " ", "\u200b")]
    for number, row in enumerate(rows):
        row["conversations"] += [{"from": "human", "value": f"问{number}"}, {"from": "gpt", "value": "答"}]
    put(tmp_path / "c", "sharegpt/a.jsonl", rows)
    report, _ = run(
        tmp_path / "c", tokenizer, tmp_path / "out", "sharegpt", system_prompts=SystemPromptConfig(none=0, fixed=1)
    )
    assert report["by_system_prompt"] == {"fixed": 3}
    report, _ = run(tmp_path / "c", tokenizer, tmp_path / "none", "sharegpt")
    assert report["by_system_prompt"] == {"none": 3}
    for tokens in datasets.load_from_disk(str(tmp_path / "none" / "train"))["tokens"]:
        assert tokens.count(tokenizer.start_of_turn_id) == 2
