"""The documentation quotes the counts of the last whole campaign."""

import json

from tests.campaign.__main__ import PARTS
from tests.campaign.trials import FAULTS, table
from tests.campaign.worker import ROOT

PARTS_WITH_READERS = ("mutated texts", "mutated files")


def test_the_documentation_quotes_the_campaign() -> None:
    results = json.loads((ROOT / "scripts" / "results" / "campaign.json").read_text())
    parts = results["parts"]
    assert list(parts) == list(PARTS)
    assert table(parts) in (ROOT / "docs" / "robustness.md").read_text()
    assert all(sum(part["subjects"].values()) == part["trials"] for part in parts.values())
    for name in PARTS_WITH_READERS:
        assert min(parts[name]["subjects"].values()) >= 10_000
    assert parts["broken inputs"]["took_effect"] >= 300
    for fault in FAULTS:
        assert results["total"][fault] == sum(part[fault] for part in parts.values()) == 0
