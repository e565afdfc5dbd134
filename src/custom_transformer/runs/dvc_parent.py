"""Whether the dvc, stage or torchrun that started a training still waits for it."""

from __future__ import annotations

import functools
import os

import psutil


def _pids_up_to_dvc() -> list[int]:
    """This process's ancestors up to dvc, nearest first.

    Only processes that dvc starts have DVC_STAGE in their environment. bash is replaced by the stage's command; dash,
    which is Debian's /bin/sh, stays between the two.
    """
    pids = [os.getppid()]
    try:
        while "DVC_STAGE" in (ancestor := psutil.Process(pids[-1])).environ():
            pids.append(ancestor.ppid())
    except psutil.Error:  # ended, or another user's
        pass
    return pids


_PIDS = _pids_up_to_dvc()
_OWN_SESSION = "TORCHELASTIC_RUN_ID" in os.environ  # that of a process started by torchrun or a stage


def orphaned() -> bool:
    """Whether the dvc, stage or torchrun that started this process has ended, so that nobody waits for the result.

    If dvc ended before this process first looked, the parent seen is whoever adopted the orphan: process 1, or a
    process of another session.
    """
    if "DVC_STAGE" not in os.environ:
        return _OWN_SESSION and os.getppid() != _PIDS[0]
    dvc = _PIDS[-1]
    try:
        if [os.getppid(), *(psutil.Process(pid).ppid() for pid in _PIDS[:-1])] != _PIDS:
            return True
        return (dvc == 1 and not _dvc_is_init()) or os.getsid(dvc) != os.getsid(_PIDS[0] if _OWN_SESSION else 0)
    except (ProcessLookupError, psutil.NoSuchProcess):  # it ended at this moment
        return True


@functools.cache
def _dvc_is_init() -> bool:
    """Whether dvc is process 1, as in a container that was started for it."""
    try:
        return any("dvc" in word for word in psutil.Process(1).cmdline())
    except psutil.Error:  # another user's, which may not be inspected
        return False
