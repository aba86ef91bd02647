"""The documentation quotes the figures of the real model that are committed."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "scripts" / "results", ROOT / "docs"
FINGERPRINT = "85151962d5a65bf6cd64ff5ebd823a338be156259d9b2a21718bd36528de2769"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def test_greedy_completions_of_the_real_model() -> None:
    figures = read("greedy_smollm2.json")
    assert figures["model"]["fingerprint"] == FINGERPRINT
    assert figures["model"]["gguf_quantisation"] == "Q4_1"
    assert figures["different"] == [] and figures["prompts"] >= 50
    near = figures["near_ties"]
    assert figures["equal"] + len(near) == figures["prompts"]
    counts = f"{figures['equal']} of {figures['prompts']} completions, {figures['tokens']:,} tokens"
    assert f"{counts}, are equal" in (DOCS / "guide.md").read_text()


def rows(figures: dict[str, Any]) -> list[str]:
    """The table of tokens per second, as the page has it."""
    settings, parts = figures["settings"], figures["parts"]
    lengths = f"{settings['prompt']} + {settings['new']} tokens"
    named = {
        f"batch {settings['batches'][0]}, {lengths}": parts["equal"][f"{settings['batches'][0]}"],
        f"batch {settings['batches'][1]}": parts["equal"][f"{settings['batches'][1]}"],
        f"{settings['requests']} ragged requests, {settings['slots']} slots": parts["ragged"],
    }
    lines = []
    for name, part in named.items():
        ours, theirs = (
            f"{part['sides'][side]['tokens_per_second']['median']:.0f}"
            for side in ("jroute", "transformers")
        )
        faster = part["ours_is_faster_by"]["transformers"]
        interval = "[{:.2f}, {:.2f}]".format(*faster["interval"])
        lines.append(f"| {name} | {ours} | {theirs} ({faster['ratio']:.2f} × {interval}) |")
    return lines


def test_the_real_model_beside_transformers() -> None:
    figures = read("generate_smollm2_cpu.json")
    assert figures["settings"]["model"] == {"fingerprint": FINGERPRINT, "gguf_quantisation": "Q4_1"}
    parts = figures["parts"]
    batches = [parts["equal"][f"{batch}"] for batch in figures["settings"]["batches"]]
    for part in (*batches, parts["ragged"]):
        assert not part["failed"]
        assert all(side["tokens"]["right"] for side in part["sides"].values() if side["tokens"])
    page = (DOCS / "performance.md").read_text()
    assert "\n".join(rows(figures)) in page
