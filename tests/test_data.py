"""Examples: every byte is a target once; batches are shuffled, split over processes, and resumable."""

import itertools
import os
import re

import numpy as np
import pytest

from xlstm_hydra.configs import ConfigError, StdlibDataConfig, SyntheticDataConfig, TextDataConfig
from xlstm_hydra.data import open_corpus, spread_batches, train_batches


@pytest.fixture
def books(tmp_path):
    """Three documents, of 100, 7 and 58 bytes."""
    for name, content in {"a.txt": b"a" * 100, "sub/b.txt": b"b" * 7, "c.md": b"c" * 58}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def text(path, **changes):
    return TextDataConfig(path=str(path), **{"validation_fraction": 0.2} | changes)


def stream(corpus):
    """Inputs of all examples and the last target, without padding."""
    examples = [corpus[index] for index in range(len(corpus))]
    return [examples[0]["inputs"][0], *(t for e in examples for t in e["targets"][e["loss_mask"]])]


def test_every_byte_of_the_corpus_is_a_target_once(books):
    train, validation = open_corpus(text(books), 16, 256)
    tokens = [*stream(train), *stream(validation)]
    assert len(tokens) == 100 + 7 + 58 + 3
    counts = np.bincount(tokens, minlength=256)
    assert [counts[ord(letter)] for letter in "abc"] == [100, 7, 58] and counts[0] == 3


def test_targets_are_the_inputs_shifted_by_one_token(books):
    train, _ = open_corpus(text(books), 16, 256)
    example = train[2]
    np.testing.assert_array_equal(example["inputs"][1:], example["targets"][:-1])


def test_borders_mark_the_first_token_of_each_document(books):
    train, _ = open_corpus(text(books), 16, 256)
    for index in range(len(train)):
        example = train[index]
        real = np.flatnonzero(example["inputs"][1:] != 0) + 1
        starts = np.flatnonzero(example["inputs"] == 0)
        assert example["document_borders"][0]
        assert set(starts[example["loss_mask"][starts]]) <= set(np.flatnonzero(example["document_borders"]))
        assert not example["document_borders"][real].any()


def test_the_last_example_is_padded_or_dropped(books):
    padded, _ = open_corpus(text(books), 16, 256)
    dropped, _ = open_corpus(text(books, pad_last=False), 16, 256)
    assert len(padded) == len(dropped) + 1
    mask = padded[len(padded) - 1]["loss_mask"]
    assert mask[0] and not mask[-1] and not np.any(mask[1:] & ~mask[:-1])


PATHS = {"folder": ("", 168), "file": ("a.txt", 101), "glob": ("*.txt", 101), "deep glob": ("**/*.txt", 109)}
PATHS |= {"question mark": ("su?/b.txt", 8), "brackets": ("[ac].*", 160)}


@pytest.mark.parametrize(("path", "size"), PATHS.values(), ids=PATHS)
def test_a_path_is_a_file_a_folder_or_a_glob(books, path, size):
    train, validation = open_corpus(text(books / path), 2, 256)
    assert len(stream(train)) + len(stream(validation)) == size


def test_a_folder_includes_linked_folders_once_and_no_hidden_files(books, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "d.txt").write_bytes(b"d" * 30)
    (books / "link").symlink_to(other)
    (books / "sub" / "loop").symlink_to(books)
    (books / ".git").mkdir()
    (books / ".git" / "object").write_bytes(b"x" * 1000)
    train, validation = open_corpus(text(books), 16, 256)
    assert len(stream(train)) + len(stream(validation)) == 168 + 31


def test_the_fingerprint_changes_with_the_corpus(books):
    before = open_corpus(text(books), 16, 256)[0].fingerprint()
    assert before == open_corpus(text(books), 16, 256)[0].fingerprint()
    (books / "c.md").write_bytes(b"c" * 59)
    assert before != open_corpus(text(books), 16, 256)[0].fingerprint()


def test_the_order_of_documents_does_not_depend_on_their_folder(books, tmp_path_factory):
    import shutil

    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(books, elsewhere)
    assert stream(open_corpus(text(books), 16, 256)[0]) == stream(open_corpus(text(elsewhere), 16, 256)[0])


def test_a_path_without_files_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path='.*nothing': no files found"):
        open_corpus(text(tmp_path / "nothing"), 16, 256)


def test_a_corpus_that_is_too_small_is_refused(books):
    with pytest.raises(ConfigError, match=r"model\.context_length=100, .*the corpus has 168 bytes, too few"):
        open_corpus(text(books), 100, 256)


def test_the_unigram_entropy_is_the_entropy_of_the_frequencies(tmp_path):
    (tmp_path / "x").write_bytes(b"ab" * 5000)
    train, _ = open_corpus(text(tmp_path), 16, 256)
    assert train.unigram_entropy() == pytest.approx(1.0, abs=2e-3)


def test_the_standard_library_is_a_corpus_of_megabytes():
    train, _ = open_corpus(StdlibDataConfig(), 256, 256)
    assert len(train) * 256 > 5_000_000
    assert 4 < train.unigram_entropy() < 5.5


def test_synthetic_sequences_are_periodic():
    train, validation = open_corpus(SyntheticDataConfig(num_examples=20, motif_length=4), 16, 32)
    np.testing.assert_array_equal(train[3]["inputs"][4:], train[3]["inputs"][:-4])
    assert len(train) + len(validation) == 20
    assert not np.array_equal(train[0]["inputs"], train[1]["inputs"])


@pytest.fixture
def numbered():
    """Examples that contain their own index."""
    train, _ = open_corpus(SyntheticDataConfig(num_examples=41, validation_fraction=0.02), 16, 32)
    examples = [train[i] for i in range(len(train))]
    return [example | {"inputs": np.full(16, index)} for index, example in enumerate(examples)]


def taken(examples, batches, count):
    return [list(batch["inputs"][:, 0]) for batch in itertools.islice(batches, count)]


def test_an_epoch_has_every_example_once_in_a_new_order(numbered):
    batches = taken(numbered, train_batches(numbered, SyntheticDataConfig(), 8), 10)
    epochs = [sum(batches[:5], []), sum(batches[5:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_the_seed_determines_the_order(numbered):
    orders = [taken(numbered, train_batches(numbered, SyntheticDataConfig(seed=seed), 8), 3) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_load_the_batches_of_one_process(numbered, processes):
    whole = taken(numbered, train_batches(numbered, SyntheticDataConfig(), 8), 7)
    rows = [range(8)[i * 8 // processes : (i + 1) * 8 // processes] for i in range(processes)]
    parts = [taken(numbered, train_batches(numbered, SyntheticDataConfig(), 8, mine), 7) for mine in rows]
    assert whole == [sum(rows, []) for rows in zip(*parts, strict=True)]


def test_a_process_may_load_any_rows(numbered):
    whole = taken(numbered, train_batches(numbered, SyntheticDataConfig(), 8), 7)
    part = taken(numbered, train_batches(numbered, SyntheticDataConfig(), 8, [1, 2, 6]), 7)
    assert part == [[batch[row] for row in (1, 2, 6)] for batch in whole]


@pytest.mark.parametrize("prefetch", [0, 4])
def test_the_position_can_be_saved_and_restored(numbered, prefetch):
    config = SyntheticDataConfig(prefetch=prefetch)
    batches = train_batches(numbered, config, 8)
    taken(numbered, batches, 7)
    position = batches.position
    expected = taken(numbered, batches, 4)
    again = train_batches(numbered, config, 8)
    again.seek(position)
    assert position == 7 and taken(numbered, again, 4) == expected


def test_the_position_is_the_same_for_any_rows(numbered):
    whole = train_batches(numbered, SyntheticDataConfig(), 8)
    taken(numbered, whole, 7)
    part = train_batches(numbered, SyntheticDataConfig(), 8, [1, 2, 6])
    part.seek(whole.position)
    [[*rows]] = taken(numbered, whole, 1)
    assert taken(numbered, part, 1) == [[rows[row] for row in (1, 2, 6)]]


def test_spread_batches_are_deterministic_and_padded_at_the_end(numbered):
    batches = list(spread_batches(numbered[:10], 8, 3))
    assert len(batches) == 2
    assert batches[1]["loss_mask"][:2].all() and not batches[1]["loss_mask"][2:].any()
    parts = [spread_batches(numbered[:10], 8, 3, rows) for rows in (range(4), range(4, 8))]
    for whole, left, right in zip(batches, *parts, strict=True):
        np.testing.assert_array_equal(whole["inputs"], np.concatenate([left["inputs"], right["inputs"]]))


def test_file_names_may_contain_any_bytes(tmp_path):
    (tmp_path / "plain.txt").write_bytes(b"a" * 100)
    (tmp_path / os.fsdecode(b"\xff\xfe.txt")).write_bytes(b"b" * 100)
    (tmp_path / "two\nlines.txt").write_bytes(b"c" * 100)
    train, validation = open_corpus(text(tmp_path), 16, 256)
    assert len(stream(train)) + len(stream(validation)) == 303
    assert train.fingerprint() == open_corpus(text(tmp_path), 16, 256)[0].fingerprint()


def make_loop(path):
    path.symlink_to(path.name)


def make_dangling(path):
    path.symlink_to("gone")


BROKEN = {
    "dangling link": (make_dangling, "books/odd is a link to gone, which does not exist"),
    "loop of links": (make_loop, "books/odd cannot be read: Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("path", ["books", "books/*", "books/odd"])
def test_a_file_that_cannot_be_read_is_named(make, words, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_bytes(b"a" * 100)
    make(tmp_path / "books" / "odd")
    with pytest.raises(ConfigError, match=f"^data.path='{re.escape(path)}': {words}"):
        open_corpus(text(path), 16, 256)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_read_is_named(error, books, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "sub":
            error.filename = str(path)
            raise error
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=f"data.path=.*: {books}/sub cannot be read: {error.strerror}"):
        open_corpus(text(books), 16, 256)


def test_paths_that_are_not_files_are_skipped_with_a_warning(books, caplog):
    os.mkfifo(books / "fifo")
    train, validation = open_corpus(text(books), 16, 256)
    assert len(stream(train)) + len(stream(validation)) == 168
    assert f"skipped 1 paths that are not regular files, for example {books}/fifo is a FIFO" in caplog.text


ODD = {
    "FIFO": ("fifo", "is a FIFO. Give a file"),
    "device": ("/dev/zero", "is a device. Give a file"),
    "below a file": ("c.md/a", "c.md/a cannot be read: Not a directory"),
    "too long": ("x" * 300, "cannot be read: File name too long"),
    "no such user": ("~nobody-here/books", "no files found"),
}


@pytest.mark.parametrize(("path", "words"), ODD.values(), ids=ODD)
def test_a_path_that_is_not_a_file_or_a_folder_is_refused(path, words, books, monkeypatch):
    monkeypatch.chdir(books)
    os.mkfifo("fifo")
    with pytest.raises(ConfigError, match=f"^data.path='.*': .*{words}"):
        open_corpus(text(path), 16, 256)


def test_a_glob_finds_each_file_once_despite_circular_links(books):
    (books / "sub" / "up").symlink_to("..")
    train, validation = open_corpus(text(books / "**" / "*.txt"), 2, 256)
    assert len(stream(train)) + len(stream(validation)) == 109


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_file_that_is_truncated_during_a_read_is_named(change, books):
    train, _ = open_corpus(text(books), 16, 256)
    change(books / "a.txt")
    with pytest.raises(OSError, match="a.txt"):
        stream(train)
