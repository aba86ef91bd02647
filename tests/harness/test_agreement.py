"""Two evaluations are compared document by document."""

import json
from pathlib import Path

import pytest

from jroute.harness.agreement import (
    agree,
    agreement_table,
    compare_samples,
    find_samples,
    read_samples,
)
from jroute.utils.errors import UserError


def row(doc_id: int, text: str, answer: str, score: float, **changes) -> dict:
    record = {
        "doc_id": doc_id,
        "doc_hash": f"d{doc_id}",
        "prompt_hash": f"p{doc_id}",
        "resps": [[text]],
        "filtered_resps": [answer],
        "filter": "strict",
        "metrics": ["exact_match"],
        "exact_match": score,
    }
    return {**record, **changes}


FIRST = [
    row(0, "4 and 4 is 8", "8", 1.0),
    row(1, "it is 7", "7", 0.0),
    row(2, "it is 9", "9", 1.0),
    row(3, "5", "5", 1.0),
    row(4, "6", "6", 1.0),
]
SECOND = [
    row(2, "it was 9", "9", 1.0, prompt_hash="other"),  # in another order
    row(1, "it is 5", "5", 1.0),
    row(0, "4 and 4 is 8", "8", 1.0),
    row(3, "no", "[invalid]", 0.0),
    row(9, "1", "1", 1.0),
]


def test_every_document_is_counted() -> None:
    (agreement,) = agree("gsm8k", FIRST, SECOND)
    assert (agreement.n, agreement.only_first, agreement.only_second) == (4, 1, 1)
    assert (
        agreement.same_prompt,
        agreement.same_text,
        agreement.same_answer,
        agreement.same_score,
    ) == (3, 1, 2, 2)
    assert agreement.scores == (0.75, 0.75)  # equal scores, by different documents
    assert (agreement.first_better, agreement.second_better, agreement.differing) == (1, 1, (1, 3))
    assert agreement.common_prefix == pytest.approx((1 + 6 / 7 + 3 / 8 + 0) / 4)
    text = agreement_table([agreement], ("jroute", "vllm"))
    assert "equal: prompt 3 (75.0%), text 1 (25.0%), answer 2 (50.0%), score 2 (50.0%)" in text
    assert "not in both: 1 of jroute, 1 of vllm" in text and "documents 1, 3" in text


def test_filters_and_metrics_are_kept_apart() -> None:
    flexible = [{**each, "filter": "flexible", "exact_match": 1.0} for each in FIRST]
    unshared = [{**each, "filter": "boxed"} for each in FIRST]
    agreements = agree("gsm8k", [*FIRST, *flexible, *unshared], [*FIRST, *flexible])
    assert [(each.filter, each.scores[0]) for each in agreements] == [
        ("strict", 0.8),
        ("flexible", 1.0),
    ]


def test_other_documents_are_refused() -> None:
    with pytest.raises(UserError, match="document 0 of gsm8k is different"):
        agree("gsm8k", FIRST, [row(0, "8", "8", 1.0, doc_hash="x")])
    with pytest.raises(UserError, match="no document in common"):
        agree("gsm8k", FIRST, [row(9, "8", "8", 1.0)])
    with pytest.raises(UserError, match="no filter and metric in common"):
        agree("gsm8k", FIRST, [row(0, "8", "8", 1.0, filter="other")])


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))


def test_the_newest_samples_of_each_task_are_found(tmp_path) -> None:
    ours, theirs = tmp_path / "baseline", tmp_path / "vllm" / "Qwen__Qwen3"
    write(ours / "samples_gsm8k_cot_llama_2026-01-02T00-00-00.jsonl", FIRST)
    write(ours / "samples_gsm8k_cot_llama_2026-01-01T00-00-00.1.jsonl", [])
    write(ours / "samples_svamp_2026-01-01T00-00-00.jsonl", [row(0, "a\u2028b", "8", 1.0)])
    write(theirs / "samples_gsm8k_cot_llama_2025-01-01T00-00-00.jsonl", SECOND)
    assert find_samples(ours).keys() == {"gsm8k_cot_llama", "svamp"}
    (agreement,) = compare_samples(ours, tmp_path / "vllm")
    assert (agreement.task, agreement.n) == ("gsm8k_cot_llama", 4)
    assert len(read_samples(find_samples(ours)["svamp"])) == 1
    (same,) = compare_samples(find_samples(ours)["svamp"], ours, "svamp")
    assert (same.same_text, same.common_prefix) == (1, 1.0)


def test_missing_or_damaged_samples_are_refused(tmp_path) -> None:
    write(tmp_path / "a" / "x" / "samples_t_1.jsonl", FIRST)
    write(tmp_path / "a" / "y" / "samples_t_2.jsonl", FIRST)
    write(tmp_path / "b" / "samples_u_1.jsonl", FIRST)
    with pytest.raises(UserError, match=r"samples of t in .*x and in .*y; name one"):
        find_samples(tmp_path / "a")
    with pytest.raises(UserError, match=r"holds no samples; evaluate with --log_samples"):
        find_samples(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"samples of t and .* of u; compare"):
        compare_samples(tmp_path / "a" / "x", tmp_path / "b")
    for text, message in {
        "{}\n": r"line 1: this sample of lm-eval has no doc_id; give files",
        "not": r"line 1 is not valid JSON",
        "": "holds no",
    }.items():
        file = tmp_path / "samples_bad_1.jsonl"
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_samples(file)
