from __future__ import annotations

import numpy as np
from polyhead_server.engines.collate import pad


def test_shorter_texts_are_padded_and_masked() -> None:
    ids, mask = pad([[5, 6, 7], [8]], pad_token_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64
