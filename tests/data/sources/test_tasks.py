from collections import Counter

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, locate, read_corpus
from gemma_keras.data.sources import single_tasks as tasks
from gemma_keras.data.sources.single_tasks import verse_form
from tests.data.sources.hostile import reads_anything

POEM = "title:春夜\ndate:1926\n\n月光落在窗前，\n\n我想起故乡。\n"
QUATRAIN = ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"]
TUNE = {"author": "某", "paragraphs": ["风起。", "花落。"], "rhythmic": "如梦令"}
HUNDREDS = {"title": "唐詩三百首", "content": [
    {"type": "五言絕句", "content": [
        {"chapter": "登鸛雀樓", "subchapter": None, "author": "王之渙", "paragraphs": QUATRAIN},
        {"chapter": "又", "subchapter": "其二", "author": "某", "paragraphs": QUATRAIN},
    ]},
]}  # fmt: skip
BITEXT = "古文：学而时习之。\n现代文：学了要时常温习。\n\n古文：温故知新。\n现代文：温习旧的，知道新的。\n"

# name, a raw row, (request, reply) of each record, type
SOUND = [
    ("news_commentary", {"id": "1", "translation": {"en": "Hi", "zh": "嗨"}},
     [("把下面这段中文译成英文：\n嗨", "Hi"), ("把下面这段英文译成中文：\nHi", "嗨")], "translation"),
    ("news_commentary", {"en": "Hi", "zh": "嗨", "index": 0},
     [("把下面这段中文译成英文：\n嗨", "Hi"), ("把下面这段英文译成中文：\nHi", "嗨")], "translation"),
    ("chinese_modern_poetry", {"uuid": "1", "prompt": "写春天", "response": "风来了"}, [("写春天", "风来了")],
     "modern_poetry_creation"),
    ("chinese_modern_poetry", {"text": POEM}, [("请以“春夜”为题，写一首现代诗。", "月光落在窗前，\n\n我想起故乡。")],
     "modern_poetry_creation"),
    ("chinese_poetry", {"context": "春日", "instruction": "五言绝句", "response": "诗"},
     [("请以“春日”为题，作五言绝句一首。", "诗")], "ancient_poetry_creation"),
    ("chinese_poetry", {"title": "登樓  其一", "author": "某", "paragraphs": QUATRAIN, "id": "1"},
     [("请以“登樓 其一”为题，作五言绝句一首。", "\n".join(QUATRAIN))], "ancient_poetry_creation"),
    ("chinese_poetry_collections", TUNE, [("请用词牌“如梦令”填词一首。", "风起。\n花落。")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", TUNE | {"title": "如梦令·风起", "notes": []},
     [("请用词牌“如梦令”填词一首。", "风起。\n花落。")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", {"dynasty": "yuan", "author": "某", "paragraphs": ["天净。"], "title": "双调・大德歌"},
     [("请以“双调・大德歌”为题，作元曲一首。", "天净。")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", {"title": "关雎", "chapter": "国风", "section": "周南", "content": ["关关雎鸠，在河之洲。"]},
     [("请以“关雎”为题，作四言诗一首。", "关关雎鸠，在河之洲。")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", {"title": "长相思·山一程", "para": ["山一程，水一程", " "], "author": "某"},
     [("请以“长相思·山一程”为题，作词一首。", "山一程，水一程")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", {"title": "江行", "para": ["木落江已空，清辉澹鸥鹭"], "author": "某"},
     [("请以“江行”为题，作五言诗一首。", "木落江已空，清辉澹鸥鹭")], "ancient_poetry_creation"),
    ("chinese_poetry_collections", HUNDREDS,
     [("请以“登鸛雀樓”为题，作五言絕句一首。", "\n".join(QUATRAIN)), ("请以“又”为题，作五言絕句一首。", "\n".join(QUATRAIN))],
     "ancient_poetry_creation"),
    ("classical_modern", {"inputs": "学而时习之", "truth": "学了要时常温习"},
     [("用现代汉语解释下面这段古文：\n学而时习之", "学了要时常温习")], "classical_translation"),
    ("classical_modern", {"text": BITEXT.partition("\n\n")[0]},
     [("用现代汉语解释下面这段古文：\n学而时习之。", "学了要时常温习。")], "classical_translation"),
    ("niutrans_classical", {"text": BITEXT.partition("\n\n")[2].replace("\n", "\r\n")},
     [("用现代汉语解释下面这段古文：\n温故知新。", "温习旧的，知道新的。")], "classical_translation"),
    ("pclue", {"input": "是吗？答案：", "target": "是", "answer_choices": ["是", "否"], "type": "nli"}, [("是吗？答案：", "是")],
     "classification"),
    ("pclue", {"type": "mrc", "input": "问", "target": "答"}, [("问", "答")], "reading"),
    ("pclue", {"type": "generate", "input": "问", "target": "答", "answer_choices": ""}, [("问", "答")], "instruction"),
    ("csl", {"task": "to title", "source": "摘要", "target": "题目"}, [("摘要", "题目")], "summarization"),
    ("csl", {"task": "to keywords", "source": "摘要 题目", "target": "甲_乙"}, [("摘要 题目", "甲、乙")], "keyword_extraction"),
    ("csl", {"task": "to discipline", "source": "摘要", "target": "机械工程"}, [("摘要", "机械工程")], "classification"),
    ("lcsts", {"text": "微博", "summary": "摘要"}, [("微博", "摘要")], "summarization"),
    ("lcsts", {"id": 1, "short_text": "微博", "summary": "摘要"}, [("微博", "摘要")], "summarization"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "turns", "type"), SOUND)
def test_a_sound_row(name, row, turns, type):
    records = SOURCES[name].read(row)
    assert [tuple(turn["content"] for turn in record.messages) for record in records] == turns
    assert all([turn["role"] for turn in record.messages] == ["user", "model"] for record in records)
    assert {record.type for record in records} == {type} and SOURCES[name].type in ("", type)


def test_every_entry_has_a_sound_row_and_says_its_schema():
    assert {source.name for source in tasks.SOURCES} == {name for name, *_ in SOUND}
    assert all(source.schema and source.licence for source in tasks.SOURCES)


@pytest.mark.parametrize(("task", "wording"), [("title", "title"), ("keywords", "keywords"), ("category", "category")])
def test_requests_for_titles_and_the_like_are_phrased_later(task, wording):
    (record,) = SOURCES["csl"].read({"task": f"to {task}", "source": "摘要", "target": "题目"})
    assert record.wording == wording
    assert SOURCES["lcsts"].read({"text": "微博", "summary": "摘要"})[0].wording == "summary"


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (QUATRAIN, "五言绝句"),
        (QUATRAIN * 2, "五言律诗"),
        (QUATRAIN * 3, "五言诗"),
        (["山氣日夕[佳]，飛鳥□與還。(飛 一作：歸)", "此中有真意，欲辨已忘言。"], "五言绝句"),
        (["日月光華，旦復旦兮。"] * 2, "四言诗"),
        (["兩個黃鸝鳴翠柳，一行白鷺上青天。"] * 4, "七言律诗"),
        (["帝高阳之苗裔兮，朕皇考曰伯庸。"], "诗"),
        (["……"], "诗"),
    ],
)
def test_form_of_a_poem(lines, form):
    assert verse_form(lines) == form


@pytest.mark.parametrize(
    ("name", "row", "rule"),
    [
        ("news_commentary", {"en": " ", "zh": "嗨"}, "empty"),
        ("chinese_modern_poetry", {"text": "title:\ndate:\n\n诗"}, "empty"),
        ("chinese_modern_poetry", {"text": "title:题\ndate:1920\n\n"}, "empty"),
        ("chinese_poetry", {"title": "收尾", "author": "某", "paragraphs": []}, "empty"),
        ("chinese_poetry", {"chapter": "学而篇", "paragraphs": ["子曰：“学而时习之。”"]}, "not_a_poem"),
    ],
)
def test_rows_without_a_use_are_skipped(name, row, rule):
    with pytest.raises(SkippedRow, match=rule):
        SOURCES[name].read(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("news_commentary", {"translation": "x"}),
        ("news_commentary", {"translation": {"en": "x"}}),
        ("chinese_modern_poetry", {"text": "春夜\n月光"}),
        ("chinese_modern_poetry", {"prompt": "x"}),
        ("chinese_poetry", {"title": "x", "paragraphs": [1]}),
        ("chinese_poetry", {"title": "x", "content": [{"type": "五言絕句", "content": ["诗"]}]}),
        ("chinese_poetry", {"author": "x", "paragraphs": ["没有题目"]}),
        ("chinese_poetry", {"title": "", "para": ["没有题目"], "author": "x"}),
        ("classical_modern", {"text": "古文：一\n古文：二\n"}),
        ("classical_modern", {"text": "古文：一\n现代文：二\n古文：三\n"}),
        ("classical_modern", {"inputs": "x"}),
        ("pclue", {"input": "问", "target": "答", "type": "poem"}),
        ("pclue", {"input": "问", "target": None, "type": "nli"}),
        ("csl", {"task": "to music", "source": "x", "target": "y"}),
        ("lcsts", {"text": "x"}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read(row)


def test_stand_ins_are_read_under_the_corpus_name(tmp_path):
    chapter = tmp_path / "classical_modern" / "书" / "章"
    chapter.mkdir(parents=True)
    for name in ("bitext.txt", "source.txt", "target.txt"):
        (chapter / name).write_text(BITEXT, encoding="utf-8")
    (tmp_path / "modern_poetry").mkdir()
    (tmp_path / "modern_poetry" / "a.pt").write_text(POEM, encoding="utf-8")
    for name, count in (("classical_modern", 2), ("chinese_modern_poetry", 1)):
        corpus = CorpusConfig(name=name)
        rows = list(read_corpus(locate(corpus, tmp_path)))
        assert [len(row.records) for row in rows] == [1] * count


def test_kinds_of_csl(tmp_path):
    (tmp_path / "csl").mkdir()
    (tmp_path / "csl" / "a.tsv").write_text('to title\t"摘要\t题\nto category\t题\t工学\n', encoding="utf-8")
    corpus = CorpusConfig(name="csl", kinds=("to category",))
    assert [row.skipped for row in read_corpus(locate(corpus, tmp_path))] == ["other_kind", ""]


@pytest.mark.parametrize("source", tasks.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    reads_anything(source, [row for name, row, *_ in SOUND if name == source.name])


# rows, usable, skipped by rule, quarantined, records
REAL = {
    "news_commentary": (8000, 8000, {}, 0, 16000), "chinese_modern_poetry": (374, 374, {}, 0, 374),
    "chinese_poetry": (7186, 7151, {"empty": 13, "not_a_poem": 21}, 1, 7470),
    "chinese_poetry_collections": (7186, 7151, {"empty": 13, "not_a_poem": 21}, 1, 7470),
    "classical_modern": (9913, 9913, {}, 0, 9913), "niutrans_classical": (9913, 9913, {}, 0, 9913),
    "pclue": (1834, 1834, {}, 0, 1834), "csl": (4700, 4700, {}, 0, 4700),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    rows, usable, skipped, quarantined, records = REAL[name]
    corpus = CorpusConfig(name=name)
    read = list(read_corpus(locate(corpus, real_data)))
    assert sum(row.rows for row in read) == rows == usable + sum(skipped.values()) + quarantined
    assert sum(bool(row.records) for row in read) == usable
    assert Counter(row.skipped for row in read if row.skipped) == skipped
    assert sum(bool(row.quarantined) for row in read) == quarantined
    assert sum(len(row.records) for row in read) == records
