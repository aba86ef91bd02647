"""Answers of the adapter are kept under what was asked, by whom, and so far as it came."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import CachingLM
from sqlitedict import SqliteDict

from jroute.experiment.run import load_run
from jroute.harness.cache_names import answer_cache_name
from jroute.harness.gen_kwargs import ResponseText
from jroute.harness.model import JaxLM
from jroute.harness.request_log import RequestLog
from jroute.lm import LanguageModel
from jroute.observe.progress import GenerationBar
from jroute.tasks.synthetic import problems
from jroute.utils.errors import UserError
from tests.harness.lm_eval_requests import chat, generate, requests

SLOTS = 4
QUESTIONS = [problem.question for problem in problems("test", 6, 0)]


@pytest.fixture(scope="module")
def lm(tiny_lm: LanguageModel) -> LanguageModel:
    """The bundled model."""
    return tiny_lm


def test_answers_are_cached_under_what_was_asked(lm, tmp_path) -> None:
    ours = JaxLM(lm, 1.0, slots=SLOTS)
    cached: Any = CachingLM(ours, str(tmp_path / "cache.db"))
    by_kind = {
        "generate_until": requests("generate_until", ("Tom", {"until": [], "max_gen_toks": 3})),
        "loglikelihood": requests("loglikelihood", ("Tom has ", "5"), ("", "5")),
        "loglikelihood_rolling": requests("loglikelihood_rolling", ("Tom has 5",)),
    }
    for kind, reqs in by_kind.items():
        answers = getattr(ours, kind)(reqs)  # the adapter alone, as in a run that is killed then
        count = len(ours.records)
        assert getattr(cached, kind)(reqs) == answers
        assert len(ours.records) == count
    cached.dbdict.close()
    # Another process is answered the same, knows the gates, and asks the model nothing.
    later = JaxLM(lm, 1.0, slots=SLOTS)
    again: Any = CachingLM(later, str(tmp_path / "cache.db"))
    for kind, reqs in by_kind.items():
        getattr(again, kind)(reqs)
    everything = [request for reqs in by_kind.values() for request in reqs]
    assert later.records == [] and later.records_of(everything) == ours.records
    assert [record.gate for record in ours.records] == [1.0, 1.0, 0.0, 0.0]
    again.dbdict.close()
    # Whoever would answer otherwise is not given these answers.
    half = copy.copy(lm)
    half.fingerprint = "another"
    for other in (JaxLM(lm, 0.5), JaxLM(lm), JaxLM(half, 1.0), JaxLM(lm, 1.0, max_gen_toks=9)):
        assert other.namespace != ours.namespace
        with pytest.raises(UserError, match="holds answers of another model, routing or arm"):
            CachingLM(other, str(tmp_path / "cache.db"))
    assert JaxLM(lm, 1.0, slots=7).namespace == ours.namespace


def test_what_is_interrupted_was_cached_so_far(lm, tmp_path, monkeypatch) -> None:
    """Ctrl-C while the engine runs on; one batch of scores before the next."""
    cases = [(chat(JaxLM(lm), q), {"until": [], "max_gen_toks": 9}) for q in QUESTIONS]
    pairs = [("Tom has ", "5" * n) for n in range(1, 6)]
    expected = generate(JaxLM(lm, slots=SLOTS), *cases)
    monkeypatch.setattr("jroute.harness.scoring.SCORING_BATCH", 2)
    first = JaxLM(lm, slots=SLOTS)
    CachingLM(first, str(tmp_path / "cache.db"))
    score, calls = LanguageModel.loglikelihood, []

    def interrupt(_: Any, now: Any) -> None:
        if now.finished:
            raise KeyboardInterrupt

    def score_four(self, pairs: Any, **options: Any) -> Any:
        calls.append(len(pairs))
        if calls == [2, 2, 1]:
            raise KeyboardInterrupt
        return score(self, pairs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationBar, "__call__", interrupt)
        patch.setattr(LanguageModel, "loglikelihood", score_four)
        for kind, arguments in (("generate_until", cases), ("loglikelihood", pairs)):
            with pytest.raises(KeyboardInterrupt):
                getattr(first, kind)(requests(kind, *arguments))
    first.cache_hook.dbdict.close()
    second = JaxLM(lm, slots=SLOTS)
    cached: Any = CachingLM(second, str(tmp_path / "cache.db"))
    assert generate(cached, *cases) == expected
    assert len(second.records) == len(cases) - SLOTS
    cached.loglikelihood(requests("loglikelihood", *pairs))
    assert len(second.records) == len(cases) - SLOTS + len(pairs) - 4


@pytest.mark.parametrize("name", ["table", "live"])
def test_caches_of_an_old_run_keep_their_names(
    name: str, tiny_directory: Path, tmp_path: Path
) -> None:
    tests = Path(__file__).parent.parent
    folder = tmp_path / f"{name}_run"
    shutil.copytree(tests / "fixtures" / "runs" / name, folder)
    (tmp_path / "model").symlink_to(tiny_directory)
    golden = json.loads((tests / "golden" / "fingerprints.json").read_text())["runs"][name]
    assert answer_cache_name(load_run(folder).lm) == golden["lm_eval_cache"]


def test_answers_that_an_earlier_version_cached_are_read(tmp_path: Path) -> None:
    old = (
        b"\x80\x05\x95I\x00\x00\x00\x00\x00\x00\x00\x8c\x17jroute.evaluation.until\x94\x8c\tGenerated"
        b"\x94\x93\x94\x8c\x084 #### 4\x94\x85\x94\x81\x94}\x94\x8c\ttruncated\x94\x88sb."
    )
    with SqliteDict(str(tmp_path / "cache.db"), encode=lambda _: old) as database:
        database["answer"] = "as pickled then"
        database.commit()
    with SqliteDict(str(tmp_path / "cache.db"), autocommit=True) as database:
        database["jroute: whose answers these are"] = "model"
        RequestLog().attach(database, "model")
        text = database["answer"]
    assert text == "4 #### 4" and type(text) is ResponseText and text.truncated
