"""Corpora and the order in which they are read."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engine import corpus_entropy, train
from planner.engine.data.corpus import load_corpus
from planner.engine.data.documents import _first_wrong_byte, list_documents
from planner.engine.data.order import WindowOrder, even_starts, permute
from planner.engine.data.windows import Windows
from planner.engine.parallel.groups import Groups
from planner.engine.tasks import NextToken
from planner.errors import ConfigError
from planner.trial import DataConfig, SourceConfig


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_the_order_of_an_epoch_is_a_permutation(size, key):
    out = permute(np.arange(size, dtype=np.uint64), size, key)
    assert sorted(out.tolist()) == list(range(size))


@given(st.integers(2, 5000), st.integers(1, 40), st.integers(0, 10))
def test_every_window_lies_inside_the_corpus_and_is_read_once_an_epoch(tokens, length, seed):
    order = WindowOrder(num_tokens=tokens, length=length, seed=seed)
    if order.num_windows == 0:
        return
    starts = order.starts(np.arange(2 * order.num_windows))
    assert starts.min() >= 0
    assert starts.max() + length + 1 <= tokens
    for epoch in np.split(starts, 2):
        assert len(set(epoch.tolist())) == order.num_windows


def test_the_order_depends_on_index_and_seed_alone():
    order = WindowOrder(num_tokens=10_000, length=16, seed=3)
    whole = order.starts(np.arange(100))
    again = WindowOrder(num_tokens=10_000, length=16, seed=3)
    assert np.array_equal(np.concatenate([again.starts(np.arange(50, 100)), again.starts(np.arange(50))]), np.roll(whole, 50))  # fmt: skip
    other = WindowOrder(num_tokens=10_000, length=16, seed=4)
    assert not np.array_equal(other.starts(np.arange(100)), whole)


def test_two_epochs_cut_the_text_at_different_offsets():
    order = WindowOrder(num_tokens=10_000, length=16, seed=0)
    first, second = np.split(order.starts(np.arange(2 * order.num_windows)), 2)
    assert set((first % 16).tolist()) != set((second % 16).tolist())


def test_validation_reads_the_same_windows_for_every_number_of_workers(small):
    config = small(train={"validation_tokens": 16 * 12})
    windows = Windows.load(config)
    starts = even_starts(len(windows.corpora[0].validation), 16, 12)
    assert np.array_equal(windows.validation_windows[:, 1], starts)
    task = NextToken(config, windows, Groups(layout=config.layout))
    for workers in (1, 2, 3, 5):
        read = [
            number
            for rank in range(workers)
            for batch in task.validation_numbers(rank, workers, 2)
            for number in batch.tolist()
            if number >= 0
        ]
        assert sorted(read) == list(range(12))


def test_the_default_corpus_is_real_text_without_tests():
    corpus = load_corpus(DataConfig())
    assert len(corpus.train) > 5e6
    assert 0.05 < len(corpus.validation) / (len(corpus.train) + len(corpus.validation)) < 0.15
    assert b"def " in bytes(corpus.train)
    files = list_documents(DataConfig(), SourceConfig(corpus="python-stdlib")).files
    folders = {part for file in files for part in file.parts[:-1]}
    assert "unittest" in folders
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


def test_a_folder_is_split_by_document_and_drops_exact_duplicates(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_text(f"document {number} " * 5)
    (tmp_path / "copy.txt").write_text("document 7 " * 5)
    (tmp_path / ".hidden").write_text("secret")
    corpus = load_corpus(DataConfig(corpus=str(tmp_path), validation_fraction=0.2))
    train_docs, held_back = (
        set(bytes(split).split(b"\0")) - {b""} for split in (corpus.train, corpus.validation)
    )
    assert len(train_docs) + len(held_back) == 60
    assert not train_docs & held_back
    assert len(held_back) >= 3
    assert b"secret" not in bytes(corpus.train) + bytes(corpus.validation)


def test_the_hash_of_a_corpus_follows_its_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 100)
    before = load_corpus(DataConfig(corpus=str(path)))
    assert load_corpus(DataConfig(corpus=str(path))).content_hash == before.content_hash
    path.write_text("some test " * 100)
    assert load_corpus(DataConfig(corpus=str(path))).content_hash != before.content_hash


def test_workers_that_race_for_the_cache_read_the_same(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(np.random.default_rng(0).bytes(300_000))
    found = []

    def read():
        data = DataConfig(corpus=str(path), invalid_text="keep")
        found.append(load_corpus(data).content_hash)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_bytes_that_are_no_utf_8_are_tokens_like_any_other(tmp_path, small):
    path = tmp_path / "binary.txt"
    path.write_bytes(bytes(range(256)) * 100)
    config = small(data={"corpus": str(path), "invalid_text": "keep"})
    assert corpus_entropy(config) == pytest.approx(math.log(256), abs=1e-3)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_token_file_is_read_in_its_format(tmp_path, small, dtype):
    path = tmp_path / "tokens.bin"
    (np.arange(20_000) % 500).astype(dtype).tofile(path)
    config = small(data={"corpus": str(path), "token_dtype": dtype}, model={"vocab_size": 500})
    corpus = load_corpus(config.data)
    assert len(corpus.train) + len(corpus.validation) == 20_000
    assert train(config).val_loss < 6.5


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_table_of_documents_is_a_corpus(tmp_path, ending):
    rows = [{"id": n, "body": f"row {n} says {n * n}. " * 3} for n in range(80)] * 2
    path = tmp_path / f"table.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pd.DataFrame(rows).astype({"body": pd.ArrowDtype(pa.string())}).to_parquet(path)
    corpus = load_corpus(DataConfig(corpus=str(path), text_column="body"))
    text = bytes(corpus.train) + bytes(corpus.validation)
    assert text.count(b"\0") == 80
    assert b"row 79 says 6241." in text
    with pytest.raises(ConfigError, match="Did you mean 'body'"):
        load_corpus(DataConfig(corpus=str(path), text_column="bodi"))


def test_unique_tokens_can_be_limited_and_are_recorded(small):
    result = train(small(data={"max_unique_tokens": 600}))
    assert result.metrics["unique_tokens"] == 600
    assert result.train_tokens == 1280


def bad_corpora(folder):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "short.txt").write_bytes(b"short")
    (folder / "odd.bin").write_bytes(b"abc")
    (folder / "large.bin").write_bytes(np.full(10_000, 300, dtype="uint16").tobytes())
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    (folder / "hollow").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "does not exist"),
        ("empty.txt", "is empty"),
        ("short.txt", "must hold one batch"),
        ("odd.bin", "whole tokens of 2 bytes"),
        ("large.bin", "holds token 300, vocab_size=256"),
        ("broken.jsonl", "broken.jsonl:2: every line must be JSON"),
        ("broken.parquet", "no readable Parquet file"),
        ("hollow", "train split of a corpus must hold text"),
    ],
)
def test_a_corpus_that_cannot_be_used_says_why(tmp_path, small, name, message):
    bad_corpora(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train(small(data={"corpus": str(tmp_path / name)}))


def test_without_a_folder_to_keep_them_in_the_data_are_read_all_the_same(
    text_file, tmp_path, monkeypatch
):
    kept = load_corpus(DataConfig(corpus=str(text_file)))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    corpus = load_corpus(DataConfig(corpus=str(text_file)))
    assert corpus.content_hash == kept.content_hash
    assert bytes(corpus.train) == bytes(kept.train)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"(?s)could be written.*XDG_CACHE_HOME"):
        load_corpus(DataConfig(corpus=str(text_file)))


def test_what_is_kept_and_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("some text " * 100)
    data = DataConfig(corpus=str(tmp_path / "a.txt"))
    text = bytes(load_corpus(data).train)
    (kept,) = (tmp_path / "cache").rglob("*.train.bin")
    kept.write_bytes(text[:-1])
    assert bytes(load_corpus(data).train) == text
    assert kept.read_bytes() == text


def test_a_character_at_the_end_of_a_part_is_no_wrong_byte(monkeypatch):
    monkeypatch.setattr("planner.engine.data.documents._PART_BYTES", 8)
    for text in ("größer als gedacht", "€" * 9, "𝄞" * 5, "a" * 30):
        assert _first_wrong_byte(text.encode()) is None
        for place in range(len(text.encode())):
            wrong = bytearray(text.encode())
            wrong[place] = 0xFF
            with pytest.raises(UnicodeDecodeError) as caught:
                bytes(wrong).decode()
            assert _first_wrong_byte(bytes(wrong)) == caught.value.start
