"""Rules that grade answers: values not spellings, the last answer not the first, and no reward for none."""

import gzip
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from stillroom.parts.verifiers import boxed, exact, final, graded, matching, number


@pytest.mark.parametrize("said, gold, right", [
    ("so it is 42", "42", 1), ("#### 42", "42.0", 1), ("42 apples, no: 43", "42", 0), ("it costs $1,200.", "1200", 1),
    ("x = 1/2", "0.5", 1), (r"\boxed{\frac{1}{2}}", "0.5", 1), (r"\boxed{7} is wrong, \boxed{8}", "8", 1),
    ("10 - 12 = -2", "-2", 1), ("10-12", "12", 1),
    ("no number", "0", 0), ("", "0", 0), ("1/0", "1", 0), ("#### 5 or 6", "5", 1), ("#### none, 7 before", "7", 1),
    ("first 3\n#### 4", "3", 0), (r"$12{,}500$", "12500", 1), (".5", "1/2", 1), ("3.", "3", 1), (r"\boxed{x}", "1", 0)])
def test_the_final_number_is_compared_as_a_value(said, gold, right):
    assert number(said, gold) == right


def test_a_fraction_is_exact():
    assert final("0.1") + final("0.2") == final("0.3") == Fraction(3, 10)


def test_the_last_closed_box_counts():
    assert boxed(r"\boxed{a{b}c} \boxed{d") == "a{b}c" and boxed("none") is None


def test_whole_texts_and_patterns():
    assert exact(" yes\n", "yes") == 1 and exact("yes.", "yes") == 0
    answer = matching(r"<answer>(.*?)</answer>")
    assert answer("<answer>no</answer> then <answer> yes </answer>", "yes") == 1
    assert answer("<answer>yes</answer><answer>no</answer>", "yes") == 0 and answer("yes", "yes") == 0


def test_a_reward_has_a_grade_for_each_answer_of_each_prompt():
    reward = graded(lambda ids: "".join(map(str, ids)), number)
    said = torch.tensor([[[1, 2], [2, 1]], [[3, 3], [1, 2]]])
    assert reward(said, torch.tensor([12, 33])).tolist() == [[1, 0], [1, 0]] == reward(said, ["12", "33.0"]).tolist()
    with pytest.raises(ValueError):
        reward(said, [12])


def test_every_answer_of_gsm8k_is_graded_right_by_its_own_number_and_wrong_by_another():
    file = Path(os.environ.get("STILLROOM_DATA", "../shared/data")) / "gsm8k" / "test.jsonl.gz"
    if not file.exists():
        pytest.skip("GSM8K is not here")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    for answer in answers:
        gold = answer.rpartition("####")[2].strip()
        assert number(answer, gold) == 1 and number(answer, f"{gold}1") == 0
        assert number(answer.replace("####", "The answer is"), gold) == 1
