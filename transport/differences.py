"""Exact differences of weight buckets: which elements changed, and what they are now.

A step of the optimizer leaves most bfloat16 weights as they are. The difference of a bucket to that of the version
before is coded in whichever way is smallest, and gives the new bucket back to the bit (elements are compared as
bytes, so that -0.0 and NaN count as what they are):

    header     16 bytes: coding, bytes of an element, number of changed elements
    INDICES    a uint32 place of each changed element, then their values
    BITMAP     a bit for each element, then the values of the changed ones
    WHOLE      all elements
"""

import numpy as np

INDICES, BITMAP, WHOLE = range(3)
HEADER_BYTES = 16
UNSIGNED = {2: np.uint16, 4: np.uint32}


def encode(base: np.ndarray, new: np.ndarray, *, item_bytes: int) -> np.ndarray:
    """Return the coded difference, uint8, of two uint8 buckets of one length, a multiple of `item_bytes`."""
    if base.nbytes != new.nbytes:
        raise ValueError(f"a bucket of {new.nbytes} bytes has no difference to one of {base.nbytes}")
    items = new.view(UNSIGNED[item_bytes])
    is_changed = items != base.view(UNSIGNED[item_bytes])
    num_changed = int(np.count_nonzero(is_changed))
    value_bytes = num_changed * item_bytes
    sizes = {INDICES: 4 * num_changed + value_bytes, BITMAP: -(-items.size // 8) + value_bytes, WHOLE: new.nbytes}
    if items.size > 2**32:
        del sizes[INDICES]
    coding = min(sizes, key=lambda each: sizes[each])
    header = np.array([coding + 16 * item_bytes, num_changed], np.uint64).view(np.uint8)
    if coding == WHOLE:
        return np.concatenate([header, new])
    if coding == INDICES:
        places = np.flatnonzero(is_changed).astype(np.uint32).view(np.uint8)
    else:
        places = np.packbits(is_changed)
    return np.concatenate([header, places, items[is_changed].view(np.uint8)])


def decode(base: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return the new bucket of a base and a coded difference; ValueError if they do not fit together."""
    word, num_changed = (
        difference[:HEADER_BYTES].copy().view(np.uint64).tolist() if _has_header(difference) else (3, 0)
    )
    coding, item_bytes = word % 16, word // 16
    if coding > WHOLE or item_bytes not in UNSIGNED or base.nbytes % item_bytes:
        raise ValueError("a coded difference is damaged")
    num_items = base.nbytes // item_bytes
    place_bytes = {INDICES: 4 * num_changed, BITMAP: -(-num_items // 8), WHOLE: 0}[coding]
    num_values = num_items if coding == WHOLE else num_changed
    if difference.nbytes != HEADER_BYTES + place_bytes + num_values * item_bytes:
        raise ValueError(f"a coded difference of {difference.nbytes} bytes does not fit a bucket of {base.nbytes}")
    places, values = np.split(difference[HEADER_BYTES:], [place_bytes])
    if coding == WHOLE:
        return values.copy()
    new = base.copy()
    items, changed = new.view(UNSIGNED[item_bytes]), values.copy().view(UNSIGNED[item_bytes])
    if coding == INDICES:
        items[places.copy().view(np.uint32)] = changed
    else:
        items[np.unpackbits(places, count=num_items).view(bool)] = changed
    return new


def _has_header(difference: np.ndarray) -> bool:
    return difference.dtype == np.uint8 and difference.nbytes >= HEADER_BYTES
