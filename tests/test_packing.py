"""Packing rows into sequences, and sequences into batches."""

from iris.data.template import IGNORED, Encoded
from iris.train import packing


def test_packing_keeps_rows_whole_and_loses_none():
    rows = [Encoded(list(range(n)), [IGNORED] * (n - 1) + [1]) for n in (5, 9, 3, 10, 1, 7, 2, 2)]
    bins = packing.pack(rows, 10)
    assert sorted(index for one in bins for index in one) == list(range(len(rows)))
    assert all(sum(len(rows[index].input_ids) for index in one) <= 10 for one in bins)
    assert len(bins) == 4  # 39 tokens cannot do with fewer


def test_no_row_is_learned_from_the_one_before_and_no_padding():
    one, two = Encoded([1, 2, 3], [IGNORED, 2, 3]), Encoded([4, 5], [4, 5])  # the second is plain text, learned whole
    items = [packing.packed_item([one, two])]
    batch = packing.collate(items, pad_token_id=0, shape=packing.Shape(tokens=10, longest=4, rows=5))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, *[0] * 5]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, IGNORED, 5, *[IGNORED] * 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 9, 10, 10] and batch["tokens"] == 5
    padded = packing.collate_padded(items, pad_token_id=0)
    assert padded["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]] and padded["tokens"] == 5
