"""Corpora of texts and of tagged sentences: their published sizes, splits and tags."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bmm_multitask_learning import datasets
from bmm_multitask_learning.datasets import TaggedSentences, align_tags, bio_tags, tag_targets
from bmm_multitask_learning.datasets.entities import _as_bio, _sentences
from bmm_multitask_learning.datasets.texts import read_lines, split_at_random
from bmm_multitask_learning.metrics import spans

NAN = float("nan")


@pytest.mark.parametrize(
    ("corpus", "counts", "sizes"),
    [
        ("MR", [5331, 5331], (7464, 1066, 2132)),
        ("SST-1", [1510, 3140, 2242, 3111, 1852], (8544, 1101, 2210)),
        ("SST-2", [4650, 4963], (6920, 872, 1821)),
        ("Subj", [5000, 5000], (7000, 1000, 2000)),
        ("CR", [1366, 2405], (2641, 377, 753)),
        ("MPQA", [7292, 3311], (7368, 1137, 2098)),
    ],
)
def test_sent_conv_has_the_published_size(data_home, corpus, counts, sizes):
    data = datasets.fetch_sent_conv(corpus, data_home)
    assert np.bincount(data.labels.astype(int)).tolist() == counts
    assert len(data.classes) == len(counts)
    assert tuple((data.split == part).sum() for part in ("train", "dev", "test")) == sizes
    assert set(data.corpus) == {corpus}
    assert all(data.texts)


def test_sent_conv_labels_mean_what_they_say(data_home):
    fine = datasets.fetch_sent_conv("SST-1", data_home).part("test")
    binary = datasets.fetch_sent_conv("SST-2", data_home).part("test")
    kept = fine.labels != 2
    assert [text for text, keep in zip(fine.texts, kept, strict=True) if keep] == list(
        binary.texts
    )
    assert ((fine.labels[kept] > 2) == binary.labels).all()
    reviews = datasets.fetch_sent_conv("MR", data_home)
    praise = np.array(["masterpiece" in text for text in reviews.texts])
    assert reviews.labels[praise].mean() > 0.7
    subjects = datasets.fetch_sent_conv("Subj", data_home)
    own = np.array([" i " in text for text in subjects.texts])
    assert subjects.labels[own].mean() < 0.3  # who says "i" is subjective: class 0
    cliché = [text for text in reviews.texts if "cliché" in text]
    assert len(cliché) > 10  # Windows-1252 is read


def test_equal_texts_are_in_one_part(data_home):
    data = datasets.fetch_sent_conv("MPQA", data_home)
    train, test = set(data.part("train").texts), set(data.part("test").texts)
    assert not train & test
    assert len(train | test | set(data.part("dev").texts)) < len(data) - 2000


def test_trec_has_the_published_size(data_home):
    coarse, fine = (datasets.fetch_trec(kinds, data_home) for kinds in ("coarse", "fine"))
    assert coarse.texts == fine.texts
    assert coarse.classes == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert len(fine.classes) == 50
    assert [(data.split == "test").sum() for data in (coarse, fine)] == [500, 500]
    train = coarse.part("train")
    assert np.bincount(train.labels.astype(int)).tolist() == [86, 1162, 1250, 1223, 835, 896]
    kinds = zip(fine.labels.astype(int), coarse.labels.astype(int), strict=True)
    assert all(fine.classes[f].startswith(coarse.classes[c] + ":") for f, c in kinds)
    assert train.texts[0] == "How did serfdom develop in and then leave Russia ?"


def test_reviews_are_those_of_the_embeddings(data_home):
    data = datasets.fetch_reviews(data_home)
    assert len(data) == 31780
    for part, embedded in zip(("train", "test"), datasets.fetch_sentiment(data_home), strict=True):
        texts = data.part(part)
        assert sorted(set(texts.corpus)) == list(embedded.tasks)
        assert np.array(embedded.tasks)[embedded.task].tolist() == texts.corpus.tolist()
        assert embedded.y.tolist() == texts.labels.tolist()


@pytest.mark.parametrize(
    ("corpus", "sizes", "types"),
    [
        (
            "WNUT17",
            {"train": 3394, "dev": 1009, "test": 1287},
            ("corporation", "creative-work", "group", "location", "person", "product"),
        ),
        ("BTC", {"train": 5338, "dev": 2000, "test": 2000}, ("LOC", "ORG", "PER")),
        ("wikigold", {"train": 1059, "dev": 165, "test": 472}, ("LOC", "MISC", "ORG", "PER")),
        ("SEC", {"train": 1164, "test": 303}, ("LOC", "MISC", "ORG", "PER")),
    ],
)
def test_entities_have_the_published_size(data_home, corpus, sizes, types):
    data = datasets.fetch_entities(corpus, data_home)
    assert Counter(data.split.tolist()) == sizes
    assert data.types == types
    assert all(data.words)
    assert all(word.strip() for row in data.words for word in row)
    for words, tags in zip(data.words, data.tags, strict=True):
        assert len(words) == len(tags)
        # every I- goes on with an entity: words inside spans are the words with a tag
        inside = sum(stop - start for _, start, stop in spans(tags))
        assert inside == sum(tag != "O" for tag in tags)


def test_wnut17_has_the_published_entities(data_home):
    """Derczynski et al. (2017), table 2, of the released files."""
    data = datasets.fetch_entities("WNUT17", data_home)
    count = Counter(kind for row in data.part("test").tags for kind, _, _ in spans(row))
    assert count == {
        "person": 429,
        "product": 127,
        "location": 150,
        "creative-work": 142,
        "group": 165,
        "corporation": 66,
    }


def test_lines_of_words_become_sentences():
    lines = ["-DOCSTART- -X- O O", "", "Ada NNP - I-PER", "ran VBD - O", "", "", "a\tO", "\tO"]
    lines += ["", " \tO", "b c\tB-LOC"]
    rows, documents = _sentences(lines)
    assert rows == [[("Ada", "I-PER"), ("ran", "O")], [("a", "O")], [("b c", "B-LOC")]]
    assert documents == [1, 1, 1]


def test_inside_only_tags_become_bio():
    assert _as_bio(("I-A", "I-A", "I-B", "O", "I-B")) == ("B-A", "I-A", "B-B", "O", "B-B")
    assert _as_bio(()) == ()


def test_wikigold_articles_stay_together(data_home):
    data = datasets.fetch_entities("wikigold", data_home)
    changes = (data.split[1:] != data.split[:-1]).sum()
    assert changes <= 2 * 43  # 43 of 145 articles are not of the train part


def test_a_random_split_is_fixed_and_keeps_groups():
    groups = np.repeat(np.arange(40), 3)
    split = split_at_random(groups)
    assert Counter(split[::3].tolist()) == {"train": 28, "dev": 4, "test": 8}
    assert (split.reshape(40, 3) == split[::3, None]).all()
    assert split.tolist() == split_at_random(groups).tolist()
    assert split_at_random(["b", "a"] * 5).tolist() == split_at_random(["b", "a"]).tolist() * 5


def test_a_line_that_is_no_utf8_is_windows_1252(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("naïve\n".encode() + "cliché …".encode("cp1252") + b"\n\xc2\x85\n")
    assert read_lines(path) == ["naïve", "cliché …", "\x85", ""]


def test_tags_become_numbers_with_nan_where_there_is_no_word():
    y, names = tag_targets([["B-X", "I-X", "O"], [], ["B-C", None]])
    assert names == ("O", "B-C", "I-C", "B-X", "I-X")
    np.testing.assert_array_equal(y, [[3, 4, 0], [NAN] * 3, [1, NAN, NAN]])
    again, _ = tag_targets([["I-X"]], names)
    np.testing.assert_array_equal(again, [[4]])
    with pytest.raises(ValueError, match=r"one of O, B-C.*got 'B-Y' in sentence 1, word 2"):
        tag_targets([["O"], ["O", "O", "B-Y"]], names)


def small(name, tags, split="train"):
    words = tuple(tuple("w" * len(row)) for row in tags)
    return TaggedSentences(
        words, tags, np.array([name] * len(tags)), np.array([split] * len(tags))
    )


def test_aligned_corpora_have_the_types_of_all():
    first = small("a", (("B-PER", "B-LOC"), ("O",)))
    second = small("b", (("B-MISC", "I-MISC", "B-LOC"), ("B-person",)), "test")
    both = align_tags([first, second])
    assert both.types == ("LOC",)
    assert both.tags == (("O", "B-LOC"), ("O",), ("O", "O", "B-LOC"), ("O",))
    assert both.corpus.tolist() == ["a", "a", "b", "b"]
    assert both.part("test").words == second.words
    renamed = second.retyped({"person": "PER", "LOC": "LOC", "MISC": "LOC"})
    assert renamed.tags[0] == ("B-LOC", "I-LOC", "B-LOC")
    assert align_tags([first, renamed]).types == ("LOC", "PER")
    assert align_tags([first, renamed], ["PER"]).types == ("PER",)


def test_what_is_not_common_cannot_be_aligned():
    first, second = small("a", (("B-PER",),)), small("b", (("B-MISC",),))
    with pytest.raises(ValueError, match=r"got a: PER; b: MISC. Rename types"):
        align_tags([first, second])
    with pytest.raises(ValueError, match="each type that is kept"):
        align_tags([first, first], ["PER", "LOC"])


def test_a_split_that_is_not_there():
    with pytest.raises(ValueError, match="one of train 1; got 'dev'"):
        small("a", (("O",),)).part("dev")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.fetch_sent_conv("mr"), "one of MR, SST-1, SST-2, Subj, CR, MPQA; got"),
        (lambda: datasets.fetch_trec("all"), '"coarse" or "fine"; got \'all\''),
        (lambda: datasets.fetch_entities("CoNLL"), "WNUT17, BTC, wikigold, SEC; got 'CoNLL'"),
    ],
)
def test_unknown_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bio_tags_are_in_the_order_of_the_types():
    assert bio_tags([]) == ("O",)
    assert bio_tags(["b", "a"])[1:3] == ("B-b", "I-b")
