"""Names in the report."""

import pytest

from memjax.experiment.report.words import corpus_name


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("python-docs", "python-docs"),
        ("/home/ann/book.jsonl", "book.jsonl"),
        ("/home/ann/books/", "books"),
        (
            "0.7*hf:Hugging/fineweb-edu:sample-10BT + 0.3*/d/c4//",
            "0.7*hf:Hugging/fineweb-edu:sample-10BT + 0.3*c4",
        ),
        ("1*/a/b/ + 2*c/d/", "1*b + 2*d"),
        ("1*hf:a/b+2*tfds:c4/en?split=train[:9%]", "1*hf:a/b+2*tfds:c4/en?split=train[:9%]"),
        ("hf:/home/ann/books", "books"),
        ("hf:~/books", "books"),
        ("hf:../books", "books"),
        ("hf:home/ann/books", "books"),
    ],
)
def test_a_corpus_is_named_without_folders(corpus, name):
    assert corpus_name(corpus) == name
