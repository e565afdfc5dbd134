"""Tasks for processes, which import them from here."""

from __future__ import annotations

import os
import signal
import time

from custom_transformer.errors import UserError


def same(number: int) -> int:
    return number


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refused(number: int) -> int:
    if number == 3:
        raise UserError("the text number 3 is refused")
    return number


def slow(number: int) -> int:
    if number == 0:
        print("begun", flush=True)
    time.sleep(1000)
    return number
