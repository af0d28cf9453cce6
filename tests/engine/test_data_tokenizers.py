"""Tokenizers: trained on the training text alone, the same on every worker, comparable losses."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from planner.engine import train
from planner.engine.data.corpus import load_corpora, load_corpus
from planner.engine.data.documents import list_documents
from planner.engine.data.texts import read_texts
from planner.engine.data.tokenizer import make_tokenizer
from planner.errors import ConfigError
from planner.trial import DataConfig


def bpe(path, **fields):
    return DataConfig(corpus=str(path), tokenizer="bpe", **fields)


def texts_of(data):
    documents = {name: list_documents(data, source) for name, source in data.sources.items()}
    return [*read_texts(data, documents).values()]


def test_a_bpe_has_the_asked_vocabulary_and_gives_the_text_back(text_file):
    data = bpe(text_file)
    corpus, text = load_corpus(data, 400), load_corpus(DataConfig(corpus=str(text_file)))
    tokenizer = make_tokenizer(data, 400, texts_of(data))
    assert tokenizer.vocab_size == 400
    for tokens, content in ((corpus.train, text.train), (corpus.validation, text.validation)):
        assert int(tokens.max()) < 400
        assert tokenizer._tokenizer.decode(tokens.tolist()).encode() == bytes(content)
    assert len(corpus.train) < 0.7 * len(text.train)
    assert corpus.bytes_per_token == len(text.validation) / len(corpus.validation)


def test_a_bpe_is_trained_on_the_training_documents_alone(tmp_path):
    def vocabulary(held_back):
        (tmp_path / "a.txt").write_text("the train split says this " * 200 + held_back * 20)
        found = load_corpus(bpe(tmp_path / "a.txt", validation_fraction=0.07), 260)
        return found.train.tolist()

    first, second = (vocabulary(word) for word in ("zebra zebra zebra ", "quagg quagg quagg "))
    assert first == second


def test_the_same_text_gives_the_same_bpe_without_a_cache(text_file, tmp_path, monkeypatch):
    found = []
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        found.append(load_corpus(bpe(text_file), 350))
    assert found[0].content_hash == found[1].content_hash
    assert np.array_equal(found[0].train, found[1].train)
    smaller = load_corpus(bpe(text_file), 349)
    assert smaller.content_hash != found[0].content_hash


def test_documents_are_set_apart_and_long_ones_are_cut_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("planner.engine.data.tokenizer._PIECE_BYTES", 300)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"dokument {number}: größer als zuvor\n" * 30)
    (tmp_path / "unbroken.txt").write_text("ü" * 999)
    data = bpe(tmp_path)
    corpus, text = load_corpus(data, 300), load_corpus(DataConfig(corpus=str(tmp_path)))
    tokenizer = make_tokenizer(data, 300, texts_of(data))
    assert (corpus.train == tokenizer.separator).sum() == bytes(text.train).count(b"\0")
    assert tokenizer._tokenizer.decode(corpus.train.tolist()).encode() == bytes(text.train)


def test_the_sources_of_a_mixture_share_one_tokenizer(tmp_path, text_file):
    (tmp_path / "b.txt").write_text("quite another text about other things " * 100)
    sources = {"a": {"corpus": str(text_file)}, "b": {"corpus": str(tmp_path / "b.txt")}}
    data = DataConfig.model_validate({"tokenizer": "bpe", "mixture": sources}, strict=False)
    corpora = load_corpora(data, 320)
    assert len(corpora["b"].train) < len(load_corpus(bpe(tmp_path / "b.txt"), 260).train)


def test_the_training_text_of_a_bpe_can_be_limited(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.txt").write_text(f"word{number} and {number**3} " * 20)
    whole, part = (
        load_corpus(bpe(tmp_path, **limit), 300)
        for limit in ({}, {"tokenizer_training_bytes": 20_000})
    )
    assert whole.content_hash != part.content_hash


def test_bits_per_byte_compare_over_tokenizers(small, text_file):
    longer = {
        "train": {"tokens": 16 * 8 * 40, "num_validations": 1, "validation_tokens": 4096},
        "batch": {"micro_batch_sequences": 8}, "optimizer": {"learning_rate": 1e-2},
    }  # fmt: skip
    by_bytes = train(small(**longer, model={"num_layers": 2}))
    assert by_bytes.val_bits_per_byte == pytest.approx(by_bytes.val_loss / math.log(2))
    by_bpe = train(
        small(**longer, data={"tokenizer": "bpe"}, model={"vocab_size": 300, "num_layers": 2})
    )
    corpus = load_corpus(bpe(text_file), 300)
    assert by_bpe.val_loss > by_bytes.val_loss
    assert by_bpe.val_bits_per_byte == pytest.approx(
        by_bpe.val_loss / math.log(2) / corpus.bytes_per_token
    )
    assert by_bpe.val_bits_per_byte < 0.9 * by_bpe.val_loss / math.log(2)


@pytest.fixture
def tokenizer_file(tmp_path):
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<other>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["some words and some more words of a text " * 9], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_of_a_file_is_used_as_it_is(tmp_path, tokenizer_file):
    (tmp_path / "docs").mkdir()
    for number in range(40):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"words of a text, number {number}")
    data = DataConfig(corpus=str(tmp_path / "docs"), tokenizer=str(tokenizer_file))
    corpus = load_corpus(data, 512)
    assert ((corpus.train == 0).sum() + (corpus.validation == 0).sum()) == 40
    other = load_corpus(data.replace(separator_token="<other>"), 512)
    assert ((other.train == 1).sum() + (other.validation == 1).sum()) == 40


def test_a_tokenizer_that_does_not_go_with_the_trial_says_why(
    small, text_file, tokenizer_file, tmp_path
):
    (tmp_path / "none.json").write_text("{}")

    def of(tokenizer, vocab_size, **data):
        data = {"corpus": str(text_file), "tokenizer": str(tokenizer), **data}
        return lambda: train(small(data=data, model={"vocab_size": vocab_size}))

    (tmp_path / "little.txt").write_text("ab " * 900)
    for attempt, message in (
        (of("bpe", 256), "more tokens than the 256 bytes: model.vocab_size=256"),
        (of("bpe", 5000, corpus=str(tmp_path / "little.txt")), r"gives \d+ tokens, model.vocab_size=5000"),
        (of(tokenizer_file, 256), r"has \d+ tokens, model.vocab_size=256"),
        (of(tokenizer_file, 512, separator_token="<none>"), "no token '<none>'"),
        (of(tmp_path / "none.json", 512), "no tokenizer that the tokenizers library reads"),
        (of(tmp_path / "missing.json", 512), "must be bytes, bpe or a file"),
        (of("bpe", 300, invalid_text="keep"), "needs tokenizer: bytes"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            attempt()


@pytest.mark.parametrize(
    ("package", "data"),
    [
        ("tokenizers", {"tokenizer": "bpe"}),
        ("datasketch", {"near_duplicate_similarity": 0.8}),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path, monkeypatch, package, data
):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"document {number}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"(?s)needs the package.*pip install 'planner\[data\]'"):
        load_corpus(DataConfig(corpus=str(tmp_path), **data), 300)
