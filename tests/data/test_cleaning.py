import copy
import json

import pytest

from gemma_keras.config.sections import CleaningConfig
from gemma_keras.data.cleaning.rules import (
    contaminated,
    content_key,
    contents,
    is_empty,
    mend,
    question,
    question_key,
    repaired,
    without_residue,
)
from gemma_keras.data.records import ChatRecord, ChoiceRecord, PreferenceRecord, TextRecord
from gemma_keras.text.templates import UNLEARNT


def chat(*turns, system=""):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "model")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return ChatRecord(messages=messages, type="instruction")


def pair(prompt, chosen, rejected):
    return PreferenceRecord(prompt=[{"role": "user", "content": prompt}], chosen=chosen, rejected=rejected)


def choice(question, *choices):
    return ChoiceRecord(question=question, choices=list(choices), answer="A", subject="history")


@pytest.mark.parametrize(
    "record, texts",
    [
        (chat("你好", "您好！", system="请友善"), ["你好", "您好！"]),
        (TextRecord(text="文"), ["文"]),
        (pair("问", "好", "坏"), ["问", "好", "坏"]),
        (choice("哪一年？", "甲", "乙"), ["哪一年？", "甲", "乙"]),
    ],
)
def test_contents(record, texts):
    assert contents(record) == texts
    assert not is_empty(record)


@pytest.mark.parametrize(
    "record",
    [
        chat("你好", " \n\u3000"),
        chat("你好", "\u200b \u200d\xad\ufeff"),
        chat("", "您好"),
        TextRecord(text="\t"),
        pair("问", "", "坏"),
        choice(" ", "甲", "乙"),
    ],
)
def test_empty(record):
    assert is_empty(record)


def test_what_is_not_empty():
    assert not is_empty(chat("问", "\u200b答"))
    assert not is_empty(choice("下图中正确的是", "甲", ""))
    assert not is_empty(ChatRecord(messages=[{"role": "system", "content": ""}, *chat("甲", "乙").messages], type="x"))


def test_content_key():
    key = content_key(chat("床前 明月光", "疑是\n地上霜"))
    assert 0 <= key < 1 << 64
    assert key == content_key(chat(" 床前明月光\u3000", "疑是地上霜", system="请背诗"))
    assert key == content_key(chat("床前\u200b明\xad月光", "\ufeff疑是\u200d地上霜\u2060 "))
    others = [
        chat("床前明月光疑是", "地上霜"),
        chat("床前明月光", "疑是地上霜。"),
        TextRecord(text="床前明月光疑是地上霜"),
    ]
    assert len({key, *map(content_key, others)}) == 4
    assert isinstance(content_key(TextRecord(text="\ud800")), int)


def test_conversations_from_which_other_turns_are_learnt_are_no_copies():
    keys = set()
    for place in (None, 1, 3):
        record = chat("甲", "乙", "丙", "丁")
        if place:
            record.messages[place] |= UNLEARNT
        keys.add(content_key(record))
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (chat("甲", "乙"), ["甲"]),
        (chat("甲", "乙", "丙", "丁"), ["甲"]),
        (chat("甲", "乙", system="你是老师"), ["甲"]),
        (chat("你好！", "您好", "甲", "乙", "丙", "丁"), ["你好！", "甲"]),
        (chat("Hello, good morning", "Hi", "你好呀", "好", "甲", "乙"), ["Hello, good morning", "你好呀", "甲"]),
        (chat("你好", "您好"), ["你好"]),
        (chat("Hi", "Hello", "嗨", "嗨"), ["Hi", "嗨"]),
        (chat("history", "甲", "乙", "丙"), ["history"]),
        (TextRecord(text="文"), ["文"]),
        (pair("甲", "好", "坏"), ["甲"]),
        (choice("哪一年？", "甲", "乙"), ["哪一年？", "甲", "乙"]),
        (ChatRecord(messages=chat("甲", "乙", system="文章").messages, type="reading"), ["文章", "甲"]),
        (ChatRecord(messages=chat("甲", "乙").messages, type="summary", wording="title"), ["甲", "title"]),
    ],
)
def test_question(record, texts):
    assert question(record) == texts


def test_question_key():
    same = [
        chat("床前 明月光？", "一"),
        chat("床前明月光？\u200b", "二", "再问", "三", system="请背诗"),
        pair("床前明月光？", "好", "坏"),
    ]
    assert len(set(map(question_key, same))) == 1
    assert question_key(same[0]) != question_key(chat("床前明月光。", "一"))
    long = chat("你好" * 50_000 + "x", "一", "二", "三")
    assert question(long) == [contents(long)[0]]


def test_names_of_rules():
    assert contaminated("ceval") == "contaminated_ceval"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("一\r\n二\r三", "一\n二\n三"),
        ("\ufeff春\x00眠\x08\t不\u202e觉\u2066晓\x7f", "春眠\t不觉晓"),
        ("你好，世界".encode().decode("latin-1"), "你好，世界"),
        ("voilÃ\xa0 le cafÃ©", "voilà le café"),
        ("â€œquotedâ€\x9d", "“quoted”"),
        ("请生成一个标题。\\n\n", "请生成一个标题。\n"),
        ("判断是否为闰年。\\n\n\\n1996\\n", "判断是否为闰年。\n\n1996\n"),
        ("病情严重。\\n\\n在住院期间", "病情严重。\n\n在住院期间"),
        ("文章内容\\n据报道", "文章内容\n据报道"),
        ("判断是新闻还是社论:\\n随着人口增长", "判断是新闻还是社论:\n随着人口增长"),
        ("是喜剧还是恐怖片？\\n电影《夜宴》", "是喜剧还是恐怖片？\n电影《夜宴》"),
        ("5 x 3 = 15 km\\nSpeed = 15/2", "5 x 3 = 15 km\nSpeed = 15/2"),
        ("零\u200b宽\u2060字\ufeff符", "零宽字符"),
        ("page one\x0cPage two", "page one\nPage two"),
        ("第一行\x0b第二行", "第一行\n第二行"),
        ("文件\x1c组\x1d记录\x1e单元\x1f字段", "文件\n组\n记录\n单元 字段"),
        ("第一行\u2028第二行\u2029下一段", "第一行\n第二行\n下一段"),
        ("第一行\x85第二行\x85third", "第一行\n第二行\nthird"),
        ("wait\x85 what", "wait… what"),
        ("bell\x07 and escape\x1b", "bell and escape"),
        ("How fast?\\nOptions:\\n- (A) 3\\n- (B) Tom's", "How fast?\nOptions:\n- (A) 3\n- (B) Tom's"),
    ],
)
def test_repaired(text, expected):
    assert repaired(text) == expected
    assert repaired(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "全角：，。！？（）「」“引号”‘单引号’——……·《书》①Ⅳ㎡℃ＡＢＣ１２３　空格",
        "拼音 lǜ sè、nǚ；naïve café, Zürich, señor, ¿qué?, 25°±1 µm, ½ × ² ",
        "繁體中文與日本語のテキスト、한국어、Привет, مرحبا",
        "ﬁ ligature, می\u200cخواهم, e\u0301 decomposed, 👩‍🚀 emoji ❤️",
        "命题 $\\neg p$ 与 $x \\neq 0$，$\\nu_i$",
        "\\(\\nRightarrow\\) 和 \\\\n",
        'printf("混淆矩阵:\\n");',
        "以换行符（“\\n”）为分界符",
        "下面的代码有什么错误？\\n```python\\nclass A:\\n    pass\\n```",
        "while IFS=\\n read -r line",
        "print('一\\n二')",
        "C:\\new\\notes",
        "在C语言中，换行符是\\n，请解释。",
        "每行以\\n，即 LF，结束。\\n结尾也是",
        "Python 中 \\n 表示什么？",
        "集合 A\\nB 表示差",
        "Ã 是葡萄牙语字母",
        "为什么 £ 会变成 Â£？",
        "网页里怎么会有 â€™ 呢？",
        "{'a': 1}\n换行是 '\\n' 吗？",
    ],
)
def test_sound_text_stays(text):
    assert repaired(text) == text


def test_spelt_breaks_of_questions_stay():
    record = choice("输出是什么？\r\n请选择。\\n", "A::f\\nB::f\\n", "B::f\\n")
    assert mend(record, CleaningConfig()) == ("encoding",)
    assert contents(record) == ["输出是什么？\n请选择。\\n", "A::f\\nB::f\\n", "B::f\\n"]


@pytest.mark.parametrize(
    "role, text, expected",
    [
        ("user", "\n\n### Instruction:\n感冒吃什么药", "感冒吃什么药"),
        ("user", "\n\n### Instruction:\n\n### Instruction:\n感冒吃什么药\n\n### Response:\n", "感冒吃什么药"),
        ("model", "\n\n### Response:\n\n### Response:\n多喝水。\n", "多喝水。"),
        ("user", "<s>问：\n感冒了\n怎么办？\n答：\n", "感冒了\n怎么办？"),
        ("user", "<|Human|>: 你好<eoh>\n", "你好"),
        ("model", "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|MOSS|>: 您好！<eom>\n", "您好！"),
        ("user", "<s>[INST] 讲个笑话 [/INST]", "讲个笑话"),
        ("user", "Human: 讲个笑话\n\nAssistant:", "讲个笑话"),
        ("user", "<s>Human: 讲个笑话\n</s>", "讲个笑话"),
        ("model", "<s>Assistant: 从前有座山。\n</s>", "从前有座山。"),
        ("user", "\n\n### Instruction:\n", ""),
    ],
)
def test_residue(role, text, expected):
    assert without_residue(text, role) == expected
    assert without_residue(expected, role) == expected


@pytest.mark.parametrize(
    "role, text",
    [
        ("model", "提示词可以这样写：\n### Instruction:\n翻译\n### Response:\n译文"),
        ("model", "### Instruction:\n翻译下面的句子"),
        ("user", "### Response:\n这个标记是什么意思？"),
        ("user", "在 Alpaca 的模板里，\n### Instruction:\n后面写什么？"),
        ("user", "Human: 你好\nAssistant: 您好\nHuman: 再见"),
        ("user", "<s>已删除</s>"),
        ("model", "旧价：99 元</s>"),
        ("user", "Assistant: 的职责有哪些"),
        ("model", "Assistant: 的职责有哪些"),
        ("user", "Human: 是谁演的？"),
        ("user", "[INST] 是什么意思？"),
        ("user", "怎样理解 [/INST]"),
        ("user", "对话里为什么总有 <eoh>"),
        ("user", "### Instruction: 后面写什么？"),
        ("model", "Assistant: 您好\nHuman: 你好\nAssistant: 再见"),
        ("model", "<s>原价 99 元</s>，现价 59 元"),
        ("model", "<s>一</s>和<s>二</s>"),
        ("model", "句子以 <s> 开始，终止符是 </s>"),
        ("model", "答：是的"),
        ("user", "问：印度的首都是哪里？\n答："),
        ("user", "[INST] 一 [/INST] 二 [INST] 三 [/INST]"),
        ("model", '<|Commands|>: Search("天气")<eoc>\n晴'),
        ("user", "  缩进的代码\n"),
    ],
)
def test_what_is_no_residue(role, text):
    assert without_residue(text, role) == text


@pytest.mark.parametrize(
    "record, changed, texts",
    [
        (chat("### Instruction:\n一\r\n二", "### Response:\n三"), ("encoding", "residue"), ["一\n二", "三"]),
        (chat("<|Human|>: 一<eoh>", "二"), ("residue",), ["一", "二"]),
        (chat("一", "二"), (), ["一", "二"]),
        (TextRecord(text="\ufeff<s>文"), ("encoding",), ["<s>文"]),
        (pair("[INST] 问 [/INST]", "### Response:\n好", "坏\x00"), ("encoding", "residue"), ["问", "好", "坏"]),
    ],
)
def test_mend(record, changed, texts):
    unmended = copy.deepcopy(record)
    assert mend(record, CleaningConfig()) == changed
    assert contents(record) == texts
    assert mend(record, CleaningConfig()) == ()
    assert mend(unmended, CleaningConfig(repair=False, residue=False)) == ()


def test_system_turns_are_mended_too():
    record = chat("一", "二", system="请\r\n友善")
    assert mend(record, CleaningConfig()) == ("encoding",)
    assert record.messages[0]["content"] == "请\n友善"


@pytest.mark.parametrize("system", ["\u200b", "\x00\x07", " \u3000"])
def test_a_system_turn_in_which_nothing_is_seen_is_none(system):
    record = chat("一", "二", system=system)
    mend(record, CleaningConfig())
    assert record == chat("一", "二")
    prompt = PreferenceRecord(
        prompt=[{"role": "system", "content": system}, {"role": "user", "content": "一"}], chosen="甲", rejected="乙"
    )
    mend(prompt, CleaningConfig())
    assert prompt == pair("一", "甲", "乙")


def test_mending_keeps_what_is_not_to_be_learnt():
    record = chat("一\r\n", "### Response:\n二")
    record.messages[1] |= UNLEARNT
    mend(record, CleaningConfig())
    assert record.messages[1] == {"role": "model", "content": "二"} | UNLEARNT


def test_one_rule_at_a_time():
    record = chat("一\r", "### Response:\n二")
    assert mend(record, CleaningConfig(residue=False)) == ("encoding",)
    assert mend(record, CleaningConfig(repair=False)) == ("residue",)


@pytest.mark.parametrize("text", ["<s>" * 30_000, "\n" * 100_000 + "</s>", "Human:" + "\n " * 50_000, "\\n" * 50_000])
def test_hostile_texts_end(text):
    for role in ("user", "model"):
        without_residue(repaired(text), role)


def test_templates_of_real_corpora(real_data):
    for path, keys in (
        ("tigerbot_medical/medical_qa_6000.jsonl", ("instruction", "output")),
        ("chatmed_consult/ChatMed-Consult_test.json", ("query", "response")),
    ):
        for line in (real_data / path).read_text(encoding="utf-8").splitlines():
            record = chat(*(json.loads(line)[key] for key in keys))
            mend(record, CleaningConfig())
            assert not any(mark in text for text in contents(record) for mark in ("###", "<s>", "\n答："))


@pytest.mark.parametrize("path", ["alpaca_chinese_carbonz0/zh-data-part-00.json", "code_alpaca/code_alpaca_2k.json"])
def test_real_rows_that_need_no_mending(real_data, path):
    for row in json.loads((real_data / path).read_text(encoding="utf-8")):
        if "\u200b" not in "".join(row.values()):
            assert mend(chat(row["instruction"] + row["input"], row["output"]), CleaningConfig()) == ()
