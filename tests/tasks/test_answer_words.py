"""Words, units and bounds around a number: what a careful human marker would read."""

import pytest

from jroute.tasks.answers import parse_answer

# (answer, texts that give it); none: no answer.
CASES = {
    "-5": [
        "The answer is negative 5",
        "The answer is minus 5",
        "#### minus 5",
        "#### negative 5",
        "La respuesta es menos 5",
        "答案是：负5",
        "答案是 负 5",
        "It is negative 5.",
        "La réponse est moins 5",
        "\\boxed{\\text{negative }5}",
        "Answer: negative $5",
        "The temperature is minus 5 degrees.",
    ],
    "7": [
        "#### 10 minus 3",
        "\\boxed{10 \\text{ minus } 3}",
        "The result is 7[1]",
        "It is 7 [2].",
        "#### 3 plus 4",
        "The answer is 7[12].",
    ],
    "4": [
        "\\boxed{\\sqrt{16} = 4}",
    ],
    "none": [
        "\\boxed{|-4|}",
        "\\boxed{\\left|-4\\right|}",
        "\\boxed{\\lvert -4\\rvert}",
        "\\boxed{f(3)}",
        "\\boxed{2^x}",
        "\\boxed{\\sum_{i=1}^{3} i}",
        "\\boxed{\\mathrm{e}^2}",
        "\\boxed{e^2}",
        "\\boxed{2e}",
        "\\boxed{3i}",
        "#### 2 + 3i",
        "\\boxed{2a}",
        "\\boxed{0x1F}",
        "\\boxed{3\\times}",
        "#### 5 mod 3",
        "\\boxed{5 \\bmod 3}",
        "\\boxed{0.333...}",
        "#### 0.333...",
        "#### 0.3333…",
        "\\boxed{0.(3)}",
        "The answer is between 3 and 5",
        "The answer is from 3 to 5",
        "答案是 3 到 5",
        "答案是 5 个和 3 个",
        "#### 1 2 3",
        "#### 12 34",
        "The answer is\n1. 18\n2. 20",
        "#### 5 hours 30 minutes",
        "The answer is 5 feet 6 inches.",
        "#### 5'6\"",
        "答案是3点半",
        "\\boxed{5 \\text{ hours } 30 \\text{ minutes}}",
        "Die Antwort ist 3,5 kg.",
        "#### 3,5 €",
        "#### > 18",
        "#### ≥18",
        "#### ≥ $18",
        "#### 18+",
        "#### 7 R 1",
        "7 ÷ 2 = 3 R 1",
        "#### 3 remainder 1",
        "The answer is twelve",
        "The answer is between 10 and 12 dollars.",
    ],
    "1/3": [
        "答案是 3分之1",
        "答案是三分之一 = 1/3",
    ],
    "3.5": [
        "#### 3 and 1/2",
        "#### 3 & 1/2",
        "\\boxed{3 \\text{ and } 1/2}",
        "It took 3 and 1/2 hours",
    ],
    "0.5": [
        "#### <sup>1</sup>/<sub>2</sub>",
        "<sup>1</sup>⁄<sub>2</sub>",
    ],
    "1.5": [
        "1<sup>1</sup>/<sub>2</sub>",
    ],
    "1000.5": [
        "#### 1 000,50",
        "#### 1 000,5 €",
        "#### 1.000,50",
    ],
    "3000000": [
        "答案是300万",
    ],
    "3": [
        "#### 3 million",
        "The answer is 3 million dollars",
        "\\boxed{3\\text{ million}}",
    ],
    "2.5": [
        "#### 2.5 thousand dollars",
        "#### $2.5k",
    ],
    "10000": [
        "答案是1万",
        "1万元",
    ],
    "2": [
        "2 dozen",
        "#### 2 dozen",
    ],
    "18": [
        "The answer is 17. No wait, it is 18.",
        "The answer is 18. There is no wait at 3 of them.",
        "The answer is 18. No wait is needed at the 3 doors.",
        "The answer is 17, no wait, 18",
        "The answer is 17. Wait, no, it should be 18.",
        "The answer is:\n> 18\n",
        "#### 18 30-minute lessons",
        "The answer is 18 because 3 of them left.",
        "#### 18 ...",
        "The answer is 18...",
        "\\boxed{18\\text{m}}",
        "\\boxed{18m^2}",
        "#### 18h",
        "\\boxed{18L}",
        "The answer is 18 after 3 days.",
        "\\boxed{18 \\text{ apples (approx)}}",
        "| Answer | 18 |",
        "The answer is 18 [dollars]",
        "#### 18 (from 3 to 5)",
        "The answer is 18, from 3 to 5.",
        "#### [18]",
        "#### 18 (R)",
        "\\boxed{18^{\\text{th}}}",
        "The answer is:\n1. 18 eggs are laid\n2. sold",
    ],
    "20": [
        "60 / 3 = 20 apples/2 people",
        "#### 60 / 3 = 20 apples/2 people",
        "60/3 = 20 dollars per 2 hours",
        "#### 60 apples / 3 people = 20 apples",
    ],
    "12": [
        "#### 3 times 4",
        "\\boxed{3x4}",
        "#### 3x4",
        "#### 24 divided by 2",
    ],
}


@pytest.mark.parametrize(("answer", "texts"), CASES.items())
def test_words_and_units(answer: str, texts: list[str]) -> None:
    assert {text: parse_answer(text).text or "none" for text in texts} == dict.fromkeys(
        texts, answer
    )


def test_an_answer_that_is_being_taken_back_when_the_limit_is_reached() -> None:
    assert parse_answer("The answer is 17. No wait, it", truncated=True).status == "truncated"
