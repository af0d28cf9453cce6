from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import ConfigError, TrialError
from planner.tuning.ledger import Ledger, read_lines, recover


def written(path: Path, count: int) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [{"kind": "note", "text": f"line {i}"} for i in range(count)]
    with Ledger(path) as ledger:
        for line in lines:
            ledger.append(line)
    return lines


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    lines = written(tmp_path / "ledger.jsonl", 3)
    assert read_lines(tmp_path / "ledger.jsonl") == lines


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.append(
            {"kind": "report", "metrics": {"val_loss": float("nan"), "x": [float("inf")]}}
        )
    assert read_lines(tmp_path / "l")[0]["metrics"] == {"val_loss": None, "x": [None]}


@pytest.mark.parametrize(
    "torn", [b'{"kind": "rep', b"\x00\x00\x00", b'{"no": "kind"}\n', b"garbage\n"], ids=repr
)
def test_a_torn_last_line_is_moved_aside_and_said(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path, 2)
    with path.open("ab") as file:
        file.write(torn)
    found, note = recover(path)
    assert found == lines
    assert note is not None
    assert "line 3" in note
    assert (tmp_path / "ledger.jsonl.torn-3").read_bytes() == torn
    with Ledger(path) as ledger:
        ledger.append({"kind": "note"})
    assert read_lines(path) == [*lines, {"kind": "note"}]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 3)
    content = path.read_bytes().split(b"\n")
    content[1] = content[1][:5]
    path.write_bytes(b"\n".join(content))
    with pytest.raises(TrialError, match=r"ledger\.jsonl:2: not a line of a ledger"):
        recover(path)


def test_a_missing_ledger_has_no_lines(tmp_path: Path) -> None:
    assert recover(tmp_path / "none") == ([], None)


def test_a_ledger_that_can_grow_no_more_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(TrialError) as caught:
            written(tmp_path / "run" / "l", 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "l cannot be written: File too large" in caught.value.message
    assert "planner sweep --resume run" in (caught.value.hint or "")


def test_a_ledger_in_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the ledger"):
        Ledger(tmp_path / "file" / "ledger.jsonl")


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_ledger_cut_anywhere_gives_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "ledger.jsonl"
    lines = written(path, 6)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    found, note = recover(path)
    whole = content[:cut].count(b"\n")
    assert found == lines[:whole]
    assert (note is None) == (not content[:cut].split(b"\n")[-1])
