"""Damaged and odd tables are one sentence that names the file, and never change silently."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jroute.outcomes.table import OutcomeTable
from jroute.utils.errors import UserError
from tests.outcomes.test_table import DESCRIPTION, FINGERPRINT, MADE, cell


@pytest.fixture
def empty(tmp_path) -> OutcomeTable:
    return OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)


def test_no_flipped_bit_changes_a_table(empty):
    """Parts, replicates and the card: a changed bit is refused by name, or changes nothing."""
    empty.append([cell(f"p/{i}", logprob=-i / 3, made=MADE) for i in range(9)])
    empty.add_replicates([cell("p/3", logprob=-2.0, made=MADE)])

    def everything() -> str:
        table = OutcomeTable.open(empty.folder)
        return repr((table.cells(), table.replicates(), table.description))

    expected, rng = everything(), random.Random(0)
    files = [path for path in empty.folder.rglob("*") if path.is_file()]
    refused = 0
    for _ in range(320):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged, bit = bytearray(content), rng.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert everything() == expected, (file.name, bit)
        except UserError as error:
            refused += 1
            assert file.name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        file.write_bytes(content)
    assert refused > 160 and everything() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 0}, r"parts must be greater than or equal to 1"),
        ({"parts": 1.5}, "parts must be a valid integer"),
        ({"parts": 10**30}, "parts must be less than or equal to 1000000"),
        ({"parts": True}, "parts must be a valid integer"),
        ({"fingerprint": 7}, "fingerprint must be a valid string"),
        ({"description": []}, "description must be an object"),
        ({"description": {"a": float("nan")}}, "is damaged"),
        ({"description": {}, "digest": ""}, "is damaged"),
        ({"description": {"model": "abd"}}, "is damaged, its content has another digest"),
        ({"parts": None}, "parts must be a valid integer"),
    ],
)
def test_a_card_of_another_format_is_one_sentence(empty, change, message):
    empty.append([cell()])
    card = empty.folder / "_table.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(UserError, match=rf"_table\.json.*{message}.*; delete it, and the next"):
        OutcomeTable.open(empty.folder)
    card.unlink()
    card.mkdir()
    with pytest.raises(UserError, match=r"_table\.json is not a regular file; delete it"):
        OutcomeTable(empty.folder.parent, FINGERPRINT, DESCRIPTION)


def test_what_is_no_part_and_no_folder_is_named(empty, tmp_path):
    empty.append([cell()])
    (empty.folder / "part-0.parquet").mkdir()
    with pytest.raises(UserError, match=r"part-0\.parquet is damaged .*delete that file"):
        OutcomeTable.open(empty.folder)
    (empty.folder / "part-0.parquet").rmdir()
    (empty.folder / "_replicates").write_bytes(b"")
    with pytest.raises(UserError, match=r"parts in .*_replicates cannot be listed"):
        OutcomeTable.open(empty.folder).replicates()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file is not a folder"):
        OutcomeTable(tmp_path / "file", FINGERPRINT, DESCRIPTION)


@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({"gate": float("nan")}, "gate nan"),
        ({"reward": float("inf")}, "reward inf"),
        ({"tokens": -1}, "-1 tokens"),
        ({"status": "fine"}, "status 'fine'"),
    ],
)
def test_a_part_with_an_impossible_cell_is_named(empty, changes, defect):
    empty.append([cell("a")])
    [part] = empty.folder.glob("part-*")
    columns = pq.read_table(part)
    rows = [row | changes for row in columns.to_pylist()]
    metadata = {b"jroute_fingerprint": FINGERPRINT.encode()}
    damaged = pa.Table.from_pylist(rows, schema=columns.schema)
    pq.write_table(damaged.replace_schema_metadata(metadata), part)
    with pytest.raises(UserError, match=rf"part-\w+\.parquet holds a cell with .*{defect}.*delete"):
        OutcomeTable.open(empty.folder)
