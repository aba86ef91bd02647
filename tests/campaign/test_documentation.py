"""The documentation quotes the counts of the last whole campaign."""

import json

from tests.campaign.__main__ import PARTS
from tests.campaign.trials import table
from tests.campaign.worker import ROOT


def test_the_documentation_quotes_the_campaign() -> None:
    results = json.loads((ROOT / "scripts" / "results" / "campaign.json").read_text())
    assert list(results["parts"]) == list(PARTS)
    assert table(results["parts"]) in (ROOT / "docs" / "robustness.md").read_text()
    for part in results["parts"].values():
        assert len(part["faults"]) >= max(part[fault] for fault in ("lost", "wrong", "traceback"))
