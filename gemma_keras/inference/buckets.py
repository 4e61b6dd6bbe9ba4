"""Sizes that are rounded up, so that few programs are compiled."""


def bucket(length: int) -> int:
    """The size a length is rounded up to: by at most a third above 32, and a multiple of 256 above 512.

    >>> [bucket(length) for length in (1, 33, 65, 97, 193, 512, 513, 800)]
    [32, 48, 96, 128, 256, 512, 768, 1024]
    """
    if length <= 32:
        return 32
    step = 256 if length > 512 else power_of_two(length) // 4
    return -(-length // step) * step


def slot_bucket(length: int) -> int:
    """The slots that a length is given: 64, 96, 128, 192, 256, 384 and so on, at most half as many again.

    Each number is a program of its own.

    >>> [slot_bucket(length) for length in (1, 192, 1000, 1025)]
    [64, 192, 1024, 1536]
    """
    return row_bucket(max(64, length))


def row_bucket(count: int) -> int:
    """The rows of a batch for `count` sequences: 1, 2, 4, 6, 8, 12, 16, 24 and so on.

    >>> [row_bucket(count) for count in (1, 3, 5, 9, 13, 17)]
    [1, 4, 6, 12, 16, 24]
    """
    whole = power_of_two(count)
    return whole * 3 // 4 if 4 < count <= whole * 3 // 4 else whole


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`, which is positive."""
    return 1 << (number - 1).bit_length()
