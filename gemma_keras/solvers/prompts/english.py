"""The prompts in English."""

from gemma_keras.solvers.prompts import Prompts
from gemma_keras.solvers.prompts.forms import as_list, as_object, model, system, user

_FRUIT = (
    "Question: A shop sold 36 kg of apples in the morning and half as much in the afternoon, at 8 yuan a kilogram. How "
    "much did it take in for apples that day?"
)
_HAZE = "Question: Why is smog more frequent in northern China in winter than in the south?"
_FRUIT_STEPS = (
    "How many kilograms of apples were sold in the afternoon?",
    "How many kilograms were sold in the morning and the afternoon together?",
    "At 8 yuan a kilogram, how much money is that?",
)
_HAZE_STEPS = (
    "What does smog need in order to form?",
    "Which emissions does the north have in winter that the south has not?",
    "Why does the winter weather of the north keep pollutants from dispersing?",
    "Taking emissions and weather together, how do north and south differ?",
)

_PLANNER = (
    "You break hard questions down into easy ones. Given a question, write 3 to 5 sub-questions and do not answer them:\n"
    "- in the order in which they are solved, so that a later one may use the answers to those before it;\n"
    "- each asking for one thing, and clear when read alone;\n"
    "- such that their answers are enough to answer the original question.\n"
)

ENGLISH = Prompts(
    answer=[user("{question}")],
    plan=[
        system(_PLANNER + 'Write one sub-question a line, numbered "1.", "2.", "3.", and nothing else.'),
        user(_FRUIT),
        model(as_list(_FRUIT_STEPS)),
        user(_HAZE),
        model(as_list(_HAZE_STEPS)),
        user("Question: {question}"),
    ],
    plan_strictly=[
        user(
            "Break the following question down into 3 to 5 sub-questions.\n\nQuestion: {question}\n\n"
            "Do not answer it, do not explain, and write nothing before or after the list. The output is a numbered list, "
            "one sub-question a line, like this:\n1. first sub-question\n2. second sub-question\n3. third sub-question"
        ),
    ],
    plan_json=[
        system(_PLANNER + 'Write one JSON object whose key "sub_questions" holds the list, and nothing else.'),
        user(_FRUIT),
        model(as_object(_FRUIT_STEPS)),
        user(_HAZE),
        model(as_object(_HAZE_STEPS)),
        user("Question: {question}"),
    ],
    first_step=[
        user(
            "We are solving the following question step by step.\n\nQuestion: {question}\n\n"
            "Answer just the first sub-question, with the reasoning or calculation it needs, and go no further.\n\n"
            "Sub-question 1: {sub_question}"
        ),
    ],
    next_step=[
        user(
            "We are solving the following question step by step.\n\nQuestion: {question}\n\n"
            "Sub-questions answered so far:\n\n{steps}\n\n"
            "With these results, answer just the next sub-question, with the reasoning or calculation it needs. Do not "
            "repeat what is above, and go no further.\n\nSub-question {number}: {sub_question}"
        ),
    ],
    summary=[
        user(
            "Question: {question}\n\nTo solve it, these sub-questions were answered in turn:\n\n{steps}\n\n"
            "From these results, give a complete and concise answer to the original question. Write the answer itself, "
            "without mentioning sub-questions."
        ),
    ],
    judge=[
        user(
            "Review an answer with care: does it hold?\n\nQuestion: {question}\n\nAnswer: {answer}\n\n"
            "Give your verdict in exactly four lines of this form, and nothing else:\n"
            "Accuracy: pass or fail, and whether facts and calculations are right\n"
            "Completeness: pass or fail, and whether anything that was asked is missing\n"
            "Logic: pass or fail, and whether the reasoning skips or contradicts itself\n"
            'Suggestions: what exactly should change; if nothing needs to, write just "none"'
        ),
    ],
    rewrite=[
        user(
            "Question: {question}\n\nOriginal answer: {answer}\n\nReview:\n{verdict}\n\n"
            "Revise the answer as the review asks: mend what is wrong, add what is missing, keep what is right. Write the "
            "whole revised answer, without mentioning the review or what was changed."
        ),
    ],
    complexity=[
        user(
            "How complex is it to answer the following question? Score it from 0 to 1:\n"
            "0.0 to 0.3: one step, such as stating a fact or a simple calculation;\n"
            "0.3 to 0.7: several steps of reasoning or calculation in a row;\n"
            "0.7 to 1.0: many steps, knowledge of several kinds, easy to get wrong.\n\n"
            "Question: {question}\n\nWrite just the score, such as 0.4, and do not answer the question."
        ),
    ],
    letter=[
        user(
            "Question: {question}\n\nSomeone answered:\n{answer}\n\n"
            "Which option did they choose? Write just its letter (one of {letters}) and nothing else."
        ),
    ],
    statement=[
        user(
            "Join a question and its answer into one declarative sentence. Keep the meaning, do not judge it, and write "
            "just that sentence.\n\nQuestion: A shelf has 20 books and 6 are lent out. How many are left?\nAnswer: 14"
        ),
        model("A shelf has 20 books and, after 6 are lent out, 14 are left."),
        user("Question: {question}\nAnswer: {answer}"),
    ],
    masked=[
        user(
            "In the following problem one number has been replaced by an unknown X; its conclusion is known.\n\n"
            "Problem: {question}\nConclusion: {statement}\n\nWork back from the conclusion to find X. Write down the "
            'reasoning first, then a last line that begins with "Answer:" and holds just the value of X.'
        ),
    ],
    verdict=[
        user(
            "Question: {question}\nConclusion: {statement}\n\nCheck the conclusion against the conditions of the question. "
            'Write down the reasons first, then a last line that begins with "Answer:" and holds just "correct" or "wrong".'
        ),
    ],
    step="Sub-question {number}: {sub_question}\nAnswer: {answer}",
    step_in_context="{sub_question}\n(This is one step in solving the following question: {question})\n\n{steps}",
    options=(
        "{question}\n{options}\n\nChoose the correct option. Give the reasons briefly, then a last line that begins with "
        '"Answer:" and holds the letter of the option.'
    ),
    final_line=(
        '{question}\n\nThink step by step, then write a last line that begins with "Answer:" and holds the final answer, '
        "kept short."
    ),
)
