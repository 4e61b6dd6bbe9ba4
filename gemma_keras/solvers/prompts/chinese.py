"""The prompts in Chinese."""

from gemma_keras.solvers.prompts import Prompts
from gemma_keras.solvers.prompts.forms import as_list, as_object, model, system, user

_FRUIT = "问题：水果店上午卖出苹果 36 千克，下午卖出的是上午的一半，每千克 8 元。这一天卖苹果一共收入多少元？"
_HAZE = "问题：为什么北方的冬天比南方更容易出现雾霾？"
_FRUIT_STEPS = ("下午卖出苹果多少千克？", "上午和下午一共卖出苹果多少千克？", "按每千克 8 元计算，一共收入多少元？")
_HAZE_STEPS = (
    "雾霾的形成需要哪些条件？",
    "北方的冬天比南方多了哪些污染物排放？",
    "北方冬天的天气为什么不利于污染物扩散？",
    "把排放和天气放在一起看，南北方的差别在哪里？",
)

_PLANNER = (
    "你擅长把难题拆成容易回答的小问题。收到一个问题后，把它拆成 3 到 5 个子问题，不要作答。要求：\n"
    "一、按解决的先后排列，后面的子问题可以用到前面的答案；\n"
    "二、每个子问题只问一件事，单独看也能看懂；\n"
    "三、全部子问题答完以后，足以回答原来的问题。\n"
)

CHINESE = Prompts(
    answer=[user("{question}")],
    plan=[
        system(_PLANNER + "每行写一个子问题，用“1.”“2.”“3.”编号，不写别的内容。"),
        user(_FRUIT),
        model(as_list(_FRUIT_STEPS)),
        user(_HAZE),
        model(as_list(_HAZE_STEPS)),
        user("问题：{question}"),
    ],
    plan_strictly=[
        user(
            "把下面的问题拆成 3 到 5 个子问题。\n\n问题：{question}\n\n"
            "不要回答问题，不要解释，也不要写开头和结尾的话。只输出编号列表，一行一个子问题，格式如下：\n"
            "1. 第一个子问题\n2. 第二个子问题\n3. 第三个子问题"
        ),
    ],
    plan_json=[
        system(_PLANNER + '只输出一个 JSON 对象，键为 "sub_questions"，值为子问题的列表，不写别的内容。'),
        user(_FRUIT),
        model(as_object(_FRUIT_STEPS)),
        user(_HAZE),
        model(as_object(_HAZE_STEPS)),
        user("问题：{question}"),
    ],
    first_step=[
        user(
            "我们要一步一步地解决下面的问题。\n\n问题：{question}\n\n"
            "先只回答第一个子问题，写出必要的推理或计算，不要往后做。\n\n子问题 1：{sub_question}"
        ),
    ],
    next_step=[
        user(
            "我们要一步一步地解决下面的问题。\n\n问题：{question}\n\n已经回答的子问题：\n\n{steps}\n\n"
            "利用上面的结果，只回答下面这个子问题，写出必要的推理或计算，不要重复前面的内容，也不要往后做。\n\n"
            "子问题 {number}：{sub_question}"
        ),
    ],
    summary=[
        user(
            "问题：{question}\n\n为了解决这个问题，我们依次回答了下面的子问题：\n\n{steps}\n\n"
            "请综合以上结果，完整而简洁地回答原来的问题。直接写回答，不要提“子问题”。"
        ),
    ],
    judge=[
        user(
            "请你仔细审阅一份回答，看它是否站得住脚。\n\n问题：{question}\n\n回答：{answer}\n\n"
            "从四个方面写出审阅意见。严格按下面的格式输出四行，不写别的内容：\n"
            "准确性：通过或不通过，说明事实和计算是否正确\n"
            "完整性：通过或不通过，说明是否遗漏了问题的要求\n"
            "逻辑性：通过或不通过，说明推理有没有跳步或矛盾\n"
            "建议：写出具体的修改建议；如果不需要修改，只写“无”"
        ),
    ],
    rewrite=[
        user(
            "问题：{question}\n\n原来的回答：{answer}\n\n审阅意见：\n{verdict}\n\n"
            "请根据审阅意见修改原来的回答：改正错误，补上遗漏，保留正确的部分。"
            "写出修改后的完整回答，不要提到审阅意见，也不要解释改了什么。"
        ),
    ],
    complexity=[
        user(
            "请判断回答下面的问题有多复杂，用 0 到 1 之间的小数打分：\n"
            "0.0 到 0.3：一步就能回答，例如说出一个事实，或做一次简单的计算；\n"
            "0.3 到 0.7：需要连续几步推理或计算；\n"
            "0.7 到 1.0：步骤很多，要综合几方面的知识，容易出错。\n\n"
            "问题：{question}\n\n只输出分数，例如 0.4，不要回答问题。"
        ),
    ],
    letter=[
        user(
            "题目：{question}\n\n有人这样回答：\n{answer}\n\n"
            "他选的是哪一项？只输出这一项的字母（{letters} 中的一个），不写别的内容。"
        ),
    ],
    statement=[
        user(
            "把问题和它的答案合并成一个陈述句，不改变意思，也不判断对错。只输出这一句话。\n\n"
            "问题：书架上有 20 本书，借走了 6 本，还剩多少本？\n答案：14 本"
        ),
        model("书架上有 20 本书，借走了 6 本以后，还剩 14 本。"),
        user("问题：{question}\n答案：{answer}"),
    ],
    masked=[
        user(
            "下面的题目里，有一个数被换成了未知数 X；题目的结论是已知的。\n\n题目：{question}\n结论：{statement}\n\n"
            "请从结论倒推，求出 X 是多少。先写出推理过程，最后另起一行，以“答案：”开头，只写 X 的值。"
        ),
    ],
    verdict=[
        user(
            "问题：{question}\n结论：{statement}\n\n"
            "请对照问题给出的条件，判断这个结论是否成立。先写出理由，最后另起一行，以“答案：”开头，只写“正确”或“错误”。"
        ),
    ],
    step="子问题 {number}：{sub_question}\n回答：{answer}",
    step_in_context="{sub_question}\n（这是解决下面这个问题的一步：{question}）\n\n{steps}",
    options="{question}\n{options}\n\n请从以上选项中选出正确的一项。先简要说明理由，最后另起一行，以“答案：”开头，写出这一项的字母。",
    final_line="{question}\n\n请一步一步地思考，最后另起一行，以“答案：”开头，简短地写出最终答案。",
)
