"""What a split is made of: shares, groups, pools that are too small, earlier stages, and where rows come from."""

import dataclasses
import json

import datasets
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CleaningConfig, CorpusConfig, DataConfig, SystemPromptConfig
from gemma_keras.data.mixing.shares import largest_remainder
from gemma_keras.data.prepare import prepare


def write(root, name, count, first=0):
    (root / name).mkdir(parents=True, exist_ok=True)
    rows = [
        {"instruction": f"{name}的第{i}问", "input": "", "output": f"{name}答{i}"} for i in range(first, first + count)
    ]
    (root / name / f"{first}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    for name, count in (("belle", 300), ("alpaca_gpt4_zh", 200), ("alpaca_chinese", 40)):
        write(tmp_path / "corpora", name, count)
    return tmp_path / "corpora"


def corpus(name, share, group=""):
    return CorpusConfig(name=name, share=share, group=group)


def settings(root, **more):
    three = (corpus("belle", 0.5, "one"), corpus("alpaca_gpt4_zh", 0.3, "two"), corpus("alpaca_chinese", 0.2, "two"))
    return DataConfig(**{"root": str(root), "corpora": three, "sequence_length": 64, **more})


def run(config, tokenizer, out):
    return prepare(config, tokenizer, out, progress=lambda line: None)


def ids(folder):
    return datasets.load_from_disk(str(folder))["id"]


def test_repeat_keeps_the_counts_and_says_so(root, tokenizer, tmp_path):
    report = run(settings(root, rows=500, too_small="repeat", validation_rows=20), tokenizer, tmp_path / "out")
    assert report["by_source"] == {"alpaca_chinese": 100, "alpaca_gpt4_zh": 150, "belle": 250}
    assert report["validation"]["by_source"] == {"alpaca_chinese": 4, "alpaca_gpt4_zh": 6, "belle": 10}
    small = report["corpora"]["alpaca_chinese"]
    assert (small["wanted"], small["given"], small["available"], small["different"]) == (100, 100, 36, 36)
    assert "36 different ones, repeated" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    of_small = [i for i in ids(tmp_path / "out" / "train") if i.startswith("alpaca_chinese")]
    counts = {i: of_small.count(i) for i in of_small}
    assert len(counts) == 36 and set(counts.values()) == {2, 3}


def test_less_takes_what_there_is_and_says_so(root, tokenizer, tmp_path):
    report = run(settings(root, rows=500, too_small="less"), tokenizer, tmp_path / "out")
    assert report["by_source"] == {"alpaca_chinese": 40, "alpaca_gpt4_zh": 150, "belle": 250}
    assert "60 too few" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_repeating_passes_over_rows_that_cannot_be_used(root, tokenizer, tmp_path):
    rows = [{"instruction": "长" * 90 + str(i), "input": "", "output": "答"} for i in range(30)]
    (root / "alpaca_chinese" / "long.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    report = run(settings(root, rows=500, too_small="repeat"), tokenizer, tmp_path / "out")
    small = report["corpora"]["alpaca_chinese"]
    assert (small["given"], small["different"]) == (100, 40)
    assert small["removed"] == {"no_answer_within_sequence_length": 30}


def test_random_sampling_is_exact_between_groups(root, tokenizer, tmp_path):
    drawn = set()
    for seed in range(3):
        config = settings(root, rows=120, sampling="random", too_small="repeat", seed=seed)
        counts = run(config, tokenizer, tmp_path / str(seed))["by_source"]
        assert counts["belle"] == 60
        drawn.add(counts["alpaca_chinese"])
    assert len(drawn) > 1


def test_validation_that_would_leave_nothing_is_refused(root, tokenizer, tmp_path):
    with pytest.raises(UserError, match="40 would come from alpaca_chinese, which has only 40"):
        run(settings(root, rows=100, validation_rows=200), tokenizer, tmp_path / "out")


def test_missing_corpora_can_be_builtin_and_are_named_so(root, tokenizer, tmp_path):
    both = (corpus("belle", 0.5), corpus("firefly", 0.5))
    with pytest.raises(UserError, match="no files of corpus 'firefly'"):
        run(settings(root, corpora=both, rows=20), tokenizer, tmp_path / "out")
    report = run(
        settings(root, corpora=both, rows=20, missing="builtin", sequence_length=512), tokenizer, tmp_path / "out"
    )
    assert {name: entry["origin"] for name, entry in report["corpora"].items()} == {
        "belle": "files",
        "firefly": "builtin",
    }
    assert report["by_source"] == {"belle": 10, "firefly": 10}


def test_a_later_stage_draws_on_an_earlier_one(root, tokenizer, tmp_path):
    first = settings(root, corpora=(corpus("belle", 0.5), corpus("alpaca_gpt4_zh", 0.5)), rows=80, validation_rows=20)
    run(first, tokenizer, tmp_path / "one")
    later = settings(root, rows=60, validation_rows=10, earlier=(str(tmp_path / "one"),))
    report = run(later, tokenizer, tmp_path / "two")
    origins = {name: entry["origin"] for name, entry in report["corpora"].items()}
    assert origins == {"belle": "earlier stage", "alpaca_gpt4_zh": "earlier stage", "alpaca_chinese": "files"}
    assert report["by_source"] == {"belle": 30, "alpaca_gpt4_zh": 18, "alpaca_chinese": 12} and report["overlap"] == 0
    for split in ("train", "valid"):
        mine = {i for i in ids(tmp_path / "two" / split) if not i.startswith("alpaca_chinese")}
        assert mine <= set(ids(tmp_path / "one" / split)) and mine
    assert report["validation"]["by_source"] == {"belle": 5, "alpaca_gpt4_zh": 3, "alpaca_chinese": 2}
    with pytest.raises(UserError, match="holds no prepared data"):
        run(settings(root, earlier=(str(tmp_path / "nothing"),)), tokenizer, tmp_path / "three")


def test_evaluation_texts_are_kept_out_of_training(root, tokenizer, tmp_path):
    question = "在我国古代的四大发明之中，对世界文化的传播影响最大的一项是下列哪一种"
    (root / "ceval" / "val").mkdir(parents=True)
    (root / "ceval" / "val" / "history_val.csv").write_text(
        f"id,question,A,B,C,D,answer\n0,{question},造纸,火药,指南针,印刷,A\n", encoding="utf-8"
    )
    leak = [{"instruction": f"请回答：{question}？", "input": "", "output": "造纸术。"}]
    (root / "belle" / "leak.json").write_text(json.dumps(leak, ensure_ascii=False), encoding="utf-8")
    cleaning = CleaningConfig(contamination=("ceval", "cmmlu"))
    report = run(settings(root, corpora=(CorpusConfig(name="belle"),), cleaning=cleaning), tokenizer, tmp_path / "out")
    assert report["removed"] == {"contaminated_ceval": 1} and report["used"] == 300
    assert report["contamination"] == {"ceval": "compared", "cmmlu": "not compared: no files"}
    with pytest.raises(UserError, match="holds questions for evaluation"):
        run(settings(root, corpora=(CorpusConfig(name="ceval"),)), tokenizer, tmp_path / "exam")


def test_near_duplicates_go_only_where_asked(root, tokenizer, tmp_path):
    text = "春天来了，公园里的花都开了，孩子们在草地上奔跑，老人们坐在长椅上晒太阳，大家都很高兴。"
    rows = [{"instruction": "写一段话", "input": "", "output": text + extra} for extra in ("", "真好。", "另外还有。")]
    (root / "alpaca_chinese" / "near.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    only = (CorpusConfig(name="alpaca_chinese", path="alpaca_chinese/near.json"),)
    assert run(settings(root, corpora=only), tokenizer, tmp_path / "kept")["used"] == 3
    cleaning = CleaningConfig(near_duplicates=0.7)
    report = run(settings(root, corpora=only, cleaning=cleaning), tokenizer, tmp_path / "gone")
    assert report["removed"] == {"near_duplicate": 2} and report["used"] == 1


def test_long_conversations_lose_whole_turns_but_keep_the_system_prompt(root, tokenizer, tmp_path):
    turns = [{"role": "system", "content": "请简短回答。"}]
    for i in range(12):
        turns += [{"role": "user", "content": f"第{i}个问题"}, {"role": "assistant", "content": f"第{i}个回答"}]
    (root / "messages").mkdir()
    (root / "messages" / "a.jsonl").write_text(json.dumps({"messages": turns}, ensure_ascii=False), encoding="utf-8")
    config = settings(root, corpora=(CorpusConfig(name="messages"),), sequence_length=128)
    report = run(config, tokenizer, tmp_path / "out")
    assert (report["turns_cut"], report["truncated"]) == (1, 0)
    (tokens,) = datasets.load_from_disk(str(tmp_path / "out" / "train"))["tokens"]
    text = tokenizer.decode(tokens, skip_control=False)
    assert text.startswith("<bos><start_of_turn>system\n请简短回答。") and text.endswith("<end_of_turn><eos>\n")
    assert text.count("回答") - 1 == text.count("问题") < 12


def test_lengths_in_tokens(root, tokenizer, tmp_path):
    rows = [{"instruction": "问", "input": "", "output": "答" * n} for n in (1, 10, 40)]
    (root / "alpaca_chinese" / "lengths.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    only = (CorpusConfig(name="alpaca_chinese", path="alpaca_chinese/lengths.json"),)
    cleaning = CleaningConfig(min_tokens=6, max_tokens=30)
    report = run(settings(root, corpora=only, cleaning=cleaning), tokenizer, tmp_path / "out")
    assert report["removed"] == {"too_few_tokens": 1, "too_many_tokens": 1} and report["used"] == 1


PROMPTS = SystemPromptConfig(none=0.2, fixed=0.8)


def test_system_prompts_stay_exact_when_rows_fall_out(root, tokenizer, tmp_path):
    rows = [{"instruction": f"第{i}问", "input": "", "output": "答" * (i % 60 + 1)} for i in range(240)]
    (root / "alpaca_chinese" / "lengths.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    only = (CorpusConfig(name="alpaca_chinese", path="alpaca_chinese/lengths.json"),)
    for number, cleaning in enumerate((CleaningConfig(max_tokens=40), CleaningConfig(min_tokens=30))):
        config = settings(root, corpora=only, cleaning=cleaning, system_prompts=PROMPTS, sequence_length=256)
        report = run(config, tokenizer, tmp_path / str(number))
        kinds = report["by_system_prompt"]
        assert 50 < report["records"] < 200
        assert [kinds["none"], kinds["fixed"]] == largest_remainder([0.2, 0.8], report["records"])


def test_validation_rows_are_all_usable(root, tokenizer, tmp_path):
    rows = [{"instruction": f"第{i}问", "input": "", "output": "答" * (1 if i % 3 else 80)} for i in range(90)]
    (root / "alpaca_chinese" / "lengths.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    only = (CorpusConfig(name="alpaca_chinese", path="alpaca_chinese/lengths.json"),)
    config = settings(
        root, corpora=only, cleaning=CleaningConfig(max_tokens=40), system_prompts=PROMPTS, sequence_length=256,
        validation_rows=30,
    )  # fmt: skip
    report = run(config, tokenizer, tmp_path / "out")
    assert (report["validation"]["records"], report["records"]) == (30, 30)
    with pytest.raises(UserError, match="of which only 60 fit"):
        run(dataclasses.replace(config, validation_rows=70), tokenizer, tmp_path / "more")


def test_both_directions_of_a_translation_stay_on_one_side_of_a_later_stage(root, tokenizer, tmp_path):
    (root / "news_commentary").mkdir()
    pairs = [{"en": f"Number {i} is here.", "zh": f"第{i}号在这里。"} for i in range(60)]
    (root / "news_commentary" / "a.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    only = (CorpusConfig(name="news_commentary"),)
    run(settings(root, corpora=only), tokenizer, tmp_path / "one")
    report = run(
        settings(root, corpora=only, earlier=(str(tmp_path / "one"),), validation_rows=20), tokenizer, tmp_path / "two"
    )
    parents = [set(datasets.load_from_disk(str(tmp_path / "two" / split))["parent"]) for split in ("train", "valid")]
    assert not parents[0] & parents[1] and len(parents[1]) <= 20
    assert report["rows_in"] == report["used"] + sum(report["removed"].values()) == 60


def test_a_later_stage_with_other_files_or_kinds_reads_them(root, tokenizer, tmp_path):
    write(root, "belle", 50, first=900)
    part = CorpusConfig(name="belle", path="belle/0.json")
    run(settings(root, corpora=(part,), validation_rows=5), tokenizer, tmp_path / "one")
    told = []
    config = settings(
        root, corpora=(dataclasses.replace(part, path="belle/900.json"),), earlier=(str(tmp_path / "one"),)
    )
    report = prepare(config, tokenizer, tmp_path / "two", progress=told.append)
    assert report["corpora"]["belle"]["origin"] == "files" and report["records"] == 50
    assert any("belle is drawn from its files" in line for line in told)
    both = settings(
        root,
        corpora=(part, dataclasses.replace(part, path="belle/900.json")),
        earlier=config.earlier,
        validation_rows=10,
    )
    report = run(both, tokenizer, tmp_path / "three")
    assert report["records"] + report["validation"]["records"] == 350 - 5


def test_documents_of_an_earlier_stage_do_not_stand_in_the_way(root, tokenizer, tmp_path):
    (root / "cluecorpussmall").mkdir()
    (root / "cluecorpussmall" / "a.txt").write_text("".join(f"第{i}篇短文。\n" for i in range(40)), encoding="utf-8")
    texts = (CorpusConfig(name="cluecorpussmall"), CorpusConfig(name="belle"))
    run(settings(root, corpora=texts, validation_rows=10), tokenizer, tmp_path / "one")
    earlier = (str(tmp_path / "one"),)
    assert run(settings(root, corpora=texts[1:], earlier=earlier), tokenizer, tmp_path / "two")["records"] > 250
    assert run(settings(root, corpora=texts[:1], earlier=earlier), tokenizer, tmp_path / "three")["records"] == 40
    (tmp_path / "one" / "train" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        run(settings(root, corpora=texts[1:], earlier=earlier), tokenizer, tmp_path / "four")


def test_records_of_one_row_are_counted_when_they_go(root, tokenizer, tmp_path):
    (root / "safety_prompts").mkdir()
    entries = {"Insult": [{"prompt": f"问{i}", "response": "答" * (i % 2), "type": "Insult"} for i in range(40)]}
    (root / "safety_prompts" / "a.json").write_text(json.dumps(entries), encoding="utf-8")
    report = run(settings(root, corpora=(CorpusConfig(name="safety_prompts"),)), tokenizer, tmp_path / "out")
    assert report["records"] == 20 and report["removed_records"] == {"empty": 20} and report["removed"] == {}


def test_near_duplicates_are_told_by_the_corpus_own_words(root, tokenizer, tmp_path):
    (root / "news_commentary").mkdir()
    pairs = [
        ("The harvest was good in the north.", "北方收成很好。"),
        ("Trains were late again in the capital.", "首都列车又晚点了。"),
    ]
    text = "".join(json.dumps({"en": en, "zh": zh}) + "\n" for en, zh in pairs)
    (root / "news_commentary" / "a.jsonl").write_text(text, encoding="utf-8")
    cleaning = CleaningConfig(near_duplicates=0.6)
    config = settings(root, corpora=(CorpusConfig(name="news_commentary"),), cleaning=cleaning)
    assert run(config, tokenizer, tmp_path / "out")["records"] == 4


def test_kinds_are_asked_only_of_corpora_that_have_them(root, tokenizer, tmp_path):
    with pytest.raises(UserError, match="'belle' has no kinds"):
        run(settings(root, corpora=(CorpusConfig(name="belle", kinds=("poem",)),)), tokenizer, tmp_path / "out")


def test_stand_ins_are_named(root, tokenizer, tmp_path):
    (root / "belle").rename(root / "belle_school_math")
    told = []
    report = prepare(
        settings(root, corpora=(CorpusConfig(name="belle"),)), tokenizer, tmp_path / "out", progress=told.append
    )
    assert report["corpora"]["belle"]["origin"] == "stand-in"
    assert any("belle_school_math in its place" in line for line in told)


def test_both_sides_of_pairs_share_the_room(root, tokenizer, tmp_path):
    (root / "preference").mkdir()
    rows = [{"prompt": f"第{i}问", "chosen": "好" * 20, "rejected": "坏" * 20} for i in range(100)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "preference" / "a.jsonl").write_text(text, encoding="utf-8")
    report = run(
        settings(root, corpora=(CorpusConfig(name="preference"),), sequence_length=512), tokenizer, tmp_path / "out"
    )
    assert report["rows"] == 200 and 0.8 < report["useful_token_share"] <= 1


def test_repeating_ends_where_a_row_fits_in_one_slot_and_not_in_another(root, tokenizer, tmp_path):
    row = [{"instruction": "长" * 48, "input": "", "output": "答"}]
    (root / "alpaca_chinese" / "long.json").write_text(json.dumps(row), encoding="utf-8")
    only = (CorpusConfig(name="alpaca_chinese", path="alpaca_chinese/long.json"),)
    prompts = SystemPromptConfig(none=0.9996, fixed=0.0004)
    config = settings(root, corpora=only, rows=5000, too_small="repeat", sequence_length=72, system_prompts=prompts)
    with pytest.raises(UserError, match="alpaca_chinese has too few rows that can be used"):
        run(config, tokenizer, tmp_path / "out")
