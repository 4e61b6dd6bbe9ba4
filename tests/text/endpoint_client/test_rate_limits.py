import time
from email.utils import formatdate

import pytest

from gemma_keras.text.endpoint_client.rate_limits import retry_after, seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("12", 12), (" 7 ", 7), ("1d", 86400)]
    + [(text, None) for text in ("", "soon", "-1", "1x", "inf", "nan", "1e3", "١s", "s")],
)
def test_lengths_of_time(text, seconds):
    assert seconds_in(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date():
    assert 3000 < retry_after({"retry-after": formatdate(time.time() + 3600, usegmt=True)}) <= 3600
