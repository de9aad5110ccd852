"""Files are whole or absent; a lease has one holder and survives its death."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast import disk


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = disk.write(tmp_path / "deep" / "a.txt", "old")

    def fails(file):  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        disk.write(path, fails)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_written_file_can_be_read_by_those_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        assert stat.S_IMODE(disk.write(tmp_path / "a", b"x").stat().st_mode) == 0o640
    finally:
        os.umask(old)


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    path = disk.write(tmp_path / "a", "old")
    code = (
        "import sys, time; from pathlib import Path; from holdfast import disk\n"
        "def slow(f):\n"
        "    f.write(b'half'); f.flush(); print('now', flush=True); time.sleep(60)\n"
        "disk.write(Path(sys.argv[1]), slow)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    parts = list(tmp_path.glob(".*.part"))
    assert len(parts) == 1 and disk.sweep(tmp_path) == 0, "a fresh part may belong to a running process"
    os.utime(parts[0], (time.time() - 7200,) * 2)
    assert disk.sweep(tmp_path) == 1 and not list(tmp_path.glob(".*.part"))


def test_a_lease_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "job"
    with disk.lease(path) as first, disk.lease(path) as second:
        assert first and not second
        assert path.exists()
    assert not path.exists()
    with disk.lease(path) as again:
        assert again


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "job"
    code = (
        "import os, sys; from pathlib import Path; from holdfast import disk\n"
        "with disk.lease(Path(sys.argv[1])) as mine:\n    os._exit(9 if mine else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.exists()
    with disk.lease(path) as mine:
        assert mine


def test_another_hosts_lease_is_taken_over_when_it_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text('{"host": "elsewhere", "pid": 1}')
    with disk.lease(path, stale_s=60) as mine:
        assert not mine
    os.utime(path, (time.time() - 120,) * 2)
    with disk.lease(path, stale_s=60) as mine:
        assert mine
        os.utime(path, (time.time() - 120,) * 2)
        disk.renew(path)
        assert time.time() - path.stat().st_mtime < 60
    assert not path.exists()


def test_a_lease_that_was_taken_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "job"
    with disk.lease(path) as mine:
        assert mine
        path.write_text('{"host": "elsewhere", "pid": 1}')
        os.utime(path, (time.time() - 120,) * 2)
        disk.renew(path)
        assert time.time() - path.stat().st_mtime > 60, "somebody else's lease is not ours to renew"
    assert path.exists()


def test_checksum_of_a_known_string(tmp_path: Path) -> None:
    path = disk.write(tmp_path / "a", "abc")
    assert disk.checksum(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
