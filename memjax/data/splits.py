"""The split of documents into training and held-out ones."""

import hashlib


def is_validation(document_text: str, share: float) -> bool:
    """Return whether a document is held out.

    A hash of its text decides, so exact duplicates are in one split.
    """
    digest = hashlib.blake2b(document_text.encode(), digest_size=8, person=b"memjax split").digest()
    return int.from_bytes(digest, "big") < share * 2**64
