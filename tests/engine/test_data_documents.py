"""Documents: copies are left out before the split, text is UTF-8, tables and data sets are read."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from planner.engine.data.corpus import load_corpus
from planner.engine.data.deduplication import Deduplication, jaccard, shingles
from planner.errors import ConfigError
from planner.trial import DataConfig


def words(rng, number):
    return [f"w{n}" for n in rng.integers(0, 5000, number)]


def with_jaccard(similarity, number=300, seed=0):
    """Two documents whose runs of five words have about this Jaccard similarity."""
    rng = np.random.default_rng(seed)
    shared = round(number * 2 * similarity / (1 + similarity))
    head = words(rng, shared)
    return [" ".join(head + words(rng, number - shared)).encode() for _ in range(2)]


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.7, 0.9, 0.97])
def test_the_similarity_of_two_documents_is_that_of_their_runs_of_words(similarity):
    first, second = with_jaccard(similarity)
    assert jaccard(shingles(first), shingles(second)) == pytest.approx(similarity, abs=0.03)


def test_near_duplicates_are_left_out_from_the_threshold_on():
    copies = Deduplication(0.8)
    for seed in range(10):
        for number, similarity in enumerate((0.3, 0.6, 0.7, 0.9, 0.95)):
            pair = with_jaccard(similarity, seed=10 * number + seed)
            assert [copies.repeats(d) for d in pair] == [False, similarity >= 0.9]
    assert (copies.num_exact, copies.num_near) == (0, 20)


def test_case_and_spacing_make_no_difference_but_other_words_do():
    copies = Deduplication(1.0)
    assert not copies.repeats(b"One two three four five six.")
    assert copies.repeats(b"one  TWO three\nfour five six")
    assert not copies.repeats(b"one two three four six five")
    assert not copies.repeats(b"!!!")
    assert not copies.repeats(b"???")


def test_near_duplicates_never_straddle_the_split_and_are_counted(tmp_path):
    for number in range(60):
        first, second = with_jaccard(0.95, seed=number)
        (tmp_path / f"a{number}.txt").write_bytes(first)
        (tmp_path / f"b{number}.txt").write_bytes(second)
    data = DataConfig(corpus=str(tmp_path), validation_fraction=0.3)
    assert load_corpus(data).left_out == {"duplicates": 0, "near_duplicates": 0, "invalid": 0}
    corpus = load_corpus(data.replace(near_duplicate_similarity=0.8))
    assert corpus.left_out == {"duplicates": 0, "near_duplicates": 60, "invalid": 0}
    splits = [
        [shingles(d) for d in bytes(split).split(b"\0") if d]
        for split in (corpus.train, corpus.validation)
    ]
    assert len(splits[0]) + len(splits[1]) == 60
    assert max(jaccard(a, b) for a in splits[0] for b in splits[1]) < 0.5


def test_one_text_has_no_near_duplicates(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(ConfigError, match="found among documents"):
        load_corpus(DataConfig(corpus=str(tmp_path / "a.txt"), near_duplicate_similarity=0.9))


@pytest.fixture
def latin(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    return DataConfig(corpus=str(tmp_path), validation_fraction=0.2)


def test_text_that_is_not_utf_8_is_named_with_its_place_and_what_to_do(latin):
    with pytest.raises(
        ConfigError, match=r"(?s)latin.txt is not, at byte 2 \(0xf6\).*data.invalid_text"
    ):
        load_corpus(latin)


@pytest.mark.parametrize(
    ("rule", "number", "found"),
    [("drop", 1, None), ("replace", 0, "gr\ufffd\ufffder".encode()), ("keep", 0, b"gr\xf6\xdfer")],
)
def test_a_setting_says_what_becomes_of_text_that_is_not_utf_8(latin, rule, number, found):
    corpus = load_corpus(latin.replace(invalid_text=rule))
    text = bytes(corpus.train) + bytes(corpus.validation)
    assert corpus.left_out["invalid"] == number
    assert text.count(b"\0") == 41 - number
    assert found is None or found in text


def test_rows_of_tables_that_are_not_utf_8_are_named(tmp_path):
    rows = [json.dumps({"text": f"row {n}"}).encode() for n in range(40)]
    rows[7] = b'{"text": "gr\xf6sser"}'
    rows[8] = b'{"text": "half of a character: \\ud83d"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(ConfigError, match=r"a.jsonl:8 is not, at byte 12 \(0xf6\)"):
        load_corpus(DataConfig(corpus=str(tmp_path / "a.jsonl")))
    dropped = load_corpus(
        DataConfig(corpus=str(tmp_path / "a.jsonl"), invalid_text="drop", validation_fraction=0.3)
    )
    assert dropped.left_out["invalid"] == 2
    table = pa.table({"text": pa.array([b"good"] * 9 + [b"gr\xf6sser"]).view(pa.string())})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a.parquet, row 9 is not, at byte 2"):
        load_corpus(DataConfig(corpus=str(tmp_path / "a.parquet")))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    rows = {"body": [f"row {n} of the split. " * 3 for n in range(80)], "id": list(range(80))}
    train = datasets.Dataset.from_dict(rows)
    train.save_to_disk(str(folder / "one"))
    few = datasets.Dataset.from_dict({"body": ["only this"], "id": [1]})
    datasets.DatasetDict(train=train, few=few).save_to_disk(str(folder / "several"))
    return folder


def test_a_saved_data_set_is_a_corpus(dataset_folder):
    for name in ("one", "several"):
        corpus = load_corpus(DataConfig(corpus=str(dataset_folder / name), text_column="body"))
        text = bytes(corpus.train) + bytes(corpus.validation)
        assert text.count(b"\0") == 80
        assert b"row 79 of the split." in text


def test_a_saved_data_set_without_the_split_or_the_column_says_so(dataset_folder, monkeypatch):
    several = DataConfig(corpus=str(dataset_folder / "several"))
    with pytest.raises(ConfigError, match=r"text_column='text'\. Known: body, id"):
        load_corpus(several)
    with pytest.raises(ConfigError, match="text_column='id'"):
        load_corpus(several.replace(text_column="id"))
    with pytest.raises(ConfigError, match=r"dataset_split='trian'\. Did you mean 'train'"):
        load_corpus(several.replace(dataset_split="trian"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"(?s)needs the package 'datasets'.*planner\[data\]"):
        load_corpus(several.replace(text_column="body2"))


def test_a_parquet_column_of_large_text_is_read(tmp_path):
    frame = pd.DataFrame({"text": [f"row {n}" for n in range(40)]})
    frame.astype({"text": pd.ArrowDtype(pa.large_string())}).to_parquet(tmp_path / "a.parquet")
    corpus = load_corpus(DataConfig(corpus=str(tmp_path / "a.parquet"), validation_fraction=0.3))
    assert (bytes(corpus.train) + bytes(corpus.validation)).count(b"\0") == 40


def odd_corpora(folder):
    (folder / "one.txt").write_text("x")
    (folder / "blank.jsonl").write_text("\n\n")
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "number.jsonl").write_text('{"text": 3, "body": "a"}\n')
    for name in ("folder.bin", "linked", "pipe", "dataset"):
        (folder / name).mkdir()
    (folder / "linked" / "a.txt").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe" / "a.txt")
    (folder / "dataset" / "dataset_dict.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.txt", "train split of a corpus must hold text"),
        ("blank.jsonl", "train split of a corpus must hold text"),
        ("list.jsonl", r"list.jsonl:1: every row must hold text .* no columns"),
        ("number.jsonl", r"number.jsonl:1: every row must hold text"),
        ("folder.bin", "train split of a corpus must hold text"),
        ("linked", r"must be readable: .*a.txt: No such file"),
        ("pipe", "train split of a corpus must hold text"),
        ("dataset", "no readable data set"),
    ],
)
def test_odd_files_are_errors_that_name_them(tmp_path, name, message):
    odd_corpora(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_corpus(DataConfig(corpus=str(tmp_path / name)))
