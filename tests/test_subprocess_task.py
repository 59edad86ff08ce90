"""Work in another process: its result, its errors by their words, and its end."""

from __future__ import annotations

import math
import os
import time

import pytest

from manyhands.errors import ManyhandsError
from manyhands.subprocess_task import SubprocessTask


def test_the_result_comes_back() -> None:
    work = SubprocessTask(math.gcd, 12, 18)
    assert work.result() == 6
    assert work.is_done


def test_an_error_comes_back_in_words() -> None:
    with pytest.raises(ManyhandsError, match="ZeroDivisionError"):
        SubprocessTask(divmod, 1, 0).result()


def test_a_process_that_is_gone_is_named() -> None:
    with pytest.raises(ManyhandsError, match="was killed"):
        SubprocessTask(os.abort).result()


def test_it_can_be_ended() -> None:
    work = SubprocessTask(time.sleep, 600)
    assert not work.is_done
    work.stop()
    assert work.is_done
