"""Judgements: whether a review asks for another answer, and whether a conclusion is said to be right."""

import re

from gemma_keras.solvers.replies.plain import find_marked_answer, normalize
from gemma_keras.solvers.trace import Verdict

_ASPECTS = ("accuracy", "completeness", "logic", "suggestions")
_LABEL = re.compile(
    r"(?<![\u4e00-\u9fffA-Za-z])(?:(?P<accuracy>准确[性度]?|正确性|accuracy)|(?P<completeness>完整[性度]?|completeness)"
    r"|(?P<logic>逻辑性?|logic)|(?P<suggestions>(?:修改|改进)?(?:建议|意见)|suggestions?))"
    r"(?:方面)?[*_\" \t]{0,8}(?:[:：|｜]|(?<=方面)[,，]|(?<= )[-–—] )[*_\" \t]{0,8}",
    re.IGNORECASE,
)
_CLAUSES = re.compile(
    r"[,。;!?\n]|\.(?= |$)|(?= (?:but|although|though|however|except)\b)|(?=但|不过|然而)", re.IGNORECASE
)
_NEXT_ITEM = re.compile(
    r"\n[ \t|｜]{0,8}(?:\d{1,2}[.、．)）]|[-*•#]{1,4})?[ \t*|｜]{0,8}$"
)  # the number before the next label
_NOTHING = re.compile(
    r"(?:暂?无|没有?|暂时没有|不需要?|不用|不必|无需|none|no|nothing|nil|n/?a|not (?:needed|required|necessary|applicable))"
    r"(?: (?:at this time|needed|required|necessary|really))?(?:了|的)?",
    re.IGNORECASE,
)
_NOT_NEEDED = re.compile(
    r"(?:无需?|无须|毋须|没有?|没|未|不需要?|不用|不必|不作|不再|毫无|[挑找看]不[出到]|\b(?:no|not|none|nothing|without)\b|n't\b).{0,24}?"
    r"(?:建议|意见|改|调整|补充|完善|优化|润色|问题|错|误|遗漏|漏洞|矛盾|不足|瑕疵|毛病|重[写新做]|必要|需要"
    r"|chang|suggest|edit|revis|improv|\bfix|\badd\b|need|requir|necessary|mistake|error|issue|problem|gap"
    r"|missing|left out|wrong|to correct|corrections?)",
    re.IGNORECASE,
)
_PRAISE = re.compile(
    r"好|不错|优秀|完整|准确|清[楚晰]|正确|合格|通过|[保维]持|保留|^可以?$|直接(?:采用|使用|提交)|无误|到位|严谨|扎实|表扬|合理"
    r"|\b(?:good|great|fine|well|correct|complete|clear|solid|excellent|perfect|accurate|sound"
    r"|keep|ok(?:ay)?|lgtm|as is|as it stands|pass(?:es)?)\b",
    re.IGNORECASE,
)
_WANTED = re.compile(
    r"应|请|需|必须|补|添|加上|改|删|换|把|将|重[写新做]|修正|说明一下|最好|可以?[再更]|(?<!不)错|(?<!无)误|遗漏|漏了|缺|反了|混淆|矛盾|不[对符足够清]|偏题|跑题"
    r"|\b(?:should|must|needs?|please|add|remove|replace|fix|rewrite|redo|redone|clarify|wrong|incorrect|mistakes?|errors?|missing|misses|unfortunately"
    r"|off by|could be|would be better|confus\w+|contradict\w*|mention|explain|include|forgot|forgets|omits?)\b"
    r"|(?:\bnot|n't)(?: \w{1,12})? (?:correct|right|accurate|complete|clear|enough)\b",
    re.IGNORECASE,
)
_COURTESY = re.compile(
    r"如有|如果您|如需|希望(?:对|以上|这)|随时|欢迎|谢谢|\blet me know\b|\bhope (?:this|that|it)\b|\bfeel free\b|\bhappy to\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w.*\w|\w")
_CONTRAST = re.compile(r"^ ?(?:但是?|不过|然而|but|although|though|however|except)", re.IGNORECASE)
_FAILED = re.compile(
    r"不通过|未通过|没有?通过|不及格|不合格|\bfail(?:s|ed)?\b|\b(?:does|did|do) ?n[o']t pass|\bnot pass|^ ?[✗✘×❌]",
    re.IGNORECASE,
)
_POOR = re.compile(
    r"\W{0,8}(?:有?[错误]|不[准完合严清正够足充成连]|[欠缺]|否|无效"
    r"|(?:in(?:correct|accurate|complete|consistent|sufficient|valid)|illogical|flawed|wrong|poor|weak|lacking)\b"
    r"|no\W{0,4}$|not (?!wrong|bad|applicable|needed|required))",
    re.IGNORECASE,
)
_PASSED = re.compile(r"\W{0,8}(?:通过|合格|pass)", re.IGNORECASE)


def read_verdict(reply: str) -> Verdict:
    """A review by its aspects. It asks for nothing where no aspect is failed and nothing is to change.

    Of a review in other words than those it was asked for, all clauses are looked at. An empty one asks for nothing; one
    that neither finds fault nor praises asks for something.
    """
    parts = dict.fromkeys(_ASPECTS, "")
    labels = list(_LABEL.finditer(reply))
    for label, end in zip(labels, [*(following.start() for following in labels[1:]), len(reply)]):
        aspect = str(label.lastgroup)
        parts[aspect] = parts[aspect] or _NEXT_ITEM.sub("", reply[label.end() : end]).strip(' \t\n|｜",{}')
    failed = any(_is_failed(parts[name]) for name in _ASPECTS[:3])
    if any(label["suggestions"] for label in labels):
        asks = _asks_for_change(parts["suggestions"], unknown=True)
    else:
        asks = _asks_for_change(reply, unknown=not labels)
    return Verdict(text=reply, accepted=not failed and not asks, **parts)


def _is_failed(aspect: str) -> bool:
    """Whether what is said of an aspect fails it: anywhere in those words, or at its beginning in other ones."""
    return bool(_POOR.match(aspect) or (_FAILED.search(aspect) and not _PASSED.match(aspect)))


def _asks_for_change(text: str, unknown: bool) -> bool:
    """Whether any clause of a text asks for a change; `unknown`: of clauses of which none says yes or no."""
    said = [words[0] for clause in _CLAUSES.split(normalize(text)) if (words := _WORDS.search(clause))]
    clauses = [clause for clause in said if not _COURTESY.search(clause)]
    content = not clauses
    for clause in clauses:
        if _NOTHING.fullmatch(clause) or (_NOT_NEEDED.search(clause) and not _CONTRAST.match(clause)):
            content = True
        elif _WANTED.search(clause) or _CONTRAST.match(clause):
            return True
        elif _PRAISE.search(clause):
            content = True
    return unknown and not content


_UNSURE = re.compile(
    r"不一定|未必|(?:无法|不能|难以|没法|不可)(?:判断|确定|断定|得出|推出|判定|确认)|不确定|不好说|条件不足|信息不足|取决于"
    r"|\b(?:cannot|can't|can not|not necessarily|unclear|uncertain|undetermined|insufficient|not enough|depends)\b",
    re.IGNORECASE,
)
_NOT_WRONG = re.compile(
    r"(?:没有?|无|未见?|毫无|不存在|不可能|并?非|不是|不能说|不算|\b(?:nothing|no|not|without|never)\b|n't\b)[^,。;]{0,16}?"
    r"(?:错误?|误|问题|不正确|不对|不成立|矛盾|\b(?:wrong|incorrect|false|errors?|mistakes?|untrue|problems?|issues?|flaws?|contradictions?|doubt)\b)的?|错不了|不矛盾",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"(?:不能|不可|不应|不宜|难以|不认为|不觉得|不同意|谈不上|说不上|算不上|并非|不是)[^,。;]{0,12}(?:正确|成立|对)"
    r"|不(?:太|完全|是|怎么)?(?:正确|对|成立|真|准确|符|一致|能成立|合理)|部分(?:正确|对|成立)"
    r"|错|矛盾|有误|站不住|谬|非正确|^ ?[否假]|为假|[✗✘❌]|×(?! ?[\da-z(])"
    r"|\b(?:incorrect|wrong|false|untrue|fails?|invalid|mistaken|no|contradict\w*|inconsistent|partially|partly|far from|hardly"
    r"|by no means|anything but)\b"
    r"|(?:\b(?:not|never)|n't)(?: be)?(?: \w{1,20})? (?:correct|right|true|hold|match|follow|valid)",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"正确|对的|^ ?[对真]|[为是]真|属实|成立|无误|准确|是的|^ ?是$|符合|[相吻]符|一致"
    r"|\b(?:correct|right|true|holds?|valid|yes|consistent)\b|[✓✔✅]|√(?! ?[\da-z(])",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"结论|说法|命题|判断|论断|综上|所以|因此|可见|\b(?:conclusion|claim|statement|therefore|hence|thus|so|it|answer)\b",
    re.IGNORECASE,
)
_QUESTIONS = re.compile(r"[^。!?;,\n]{1,60}\?")
_SUPPOSITIONS = re.compile(
    r"(?:如果|若|假如|假设|假定|倘若|\b(?:if|suppos\w+|assum\w+)\b)[^,。;!?\n]{0,60},", re.IGNORECASE
)
_SENTENCES = re.compile(r"[。!?;\n]+|\.(?= |$)")


def affirms(reply: str) -> bool:
    """Whether a reply says that a conclusion is right, by its marked answer, else by what it says of the conclusion last.

    >>> affirms("没有错误，是正确的"), affirms("答案：正确"), affirms("结论不一定正确"), affirms("无法判断对错")
    (True, True, False, False)
    """
    marked = find_marked_answer(reply)
    text = _SUPPOSITIONS.sub("", _QUESTIONS.sub("", marked or normalize(reply)))  # neither says what is so
    said = [sentence for sentence in _SENTENCES.split(text) if sentence.strip()]
    sentences = said[:1] if marked else said
    judged = [(sentence, right) for sentence in sentences if (right := _judge_sentence(sentence)) is not None]
    about = [right for sentence, right in judged if _SUBJECT.search(sentence)]
    return (about or [right for _, right in judged] or [False])[-1]


def _judge_sentence(sentence: str) -> bool | None:
    """Whether a sentence says right or wrong; what cannot be judged counts as wrong, None: neither."""
    if _UNSURE.search(sentence):
        return False
    sentence = _NOT_WRONG.sub("正确", sentence)
    if _WRONG.search(sentence):
        return False
    return True if _RIGHT.search(sentence) else None
