"""`python run_as.py UID GID PROGRAM ARGUMENT...`: become another user, then the program.

For root alone: PostgreSQL refuses to run as root, and the user it runs as could not pass through
folders that are only root's. Instead of opening those folders to everybody, it is given the one
right to read past permissions (CAP_DAC_READ_SEARCH), and no other of root's. Linux only; elsewhere
the folders must let that user pass.
Must not know: what the program is. Imports nothing of this project: it is run as a file.
"""

from __future__ import annotations

import ctypes
import os
import sys

_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 28, 47, 2
_NO_SETUID_FIXUP = 1 << 2
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(uid: int, gid: int, program: str) -> None:
    """Change to the user for good, with no right of root's but the one to read past permissions.

    Where only root may run `program` (installed under a strict umask), the right to that is kept.
    """
    right = _DAC_READ_SEARCH if os.stat(program).st_mode & 0o001 else _DAC_OVERRIDE
    libc = ctypes.CDLL(None)
    on_linux = sys.platform == "linux"
    if on_linux:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # Else access(2) answers as if the right were not there, and PostgreSQL's programs ask it
        # whether their neighbours may be run.
        libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if not on_linux:
        return
    header, sets = _Header(_VERSION_3, 0), (_Data * 2)()
    libc.capget(ctypes.byref(header), sets)
    # A container may lack it: then the folders have to let the user pass.
    kept = sets[0].permitted & (1 << right)
    sets[0].effective = sets[0].permitted = sets[0].inheritable = kept
    sets[1].effective = sets[1].permitted = sets[1].inheritable = 0
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise SystemExit("the rights of root could not be given up")
    if kept:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, right, 0, 0)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os.execv(sys.argv[3], sys.argv[3:])
