"""Disks that are full, read-only, somebody else's, or more than one."""

from __future__ import annotations

import errno
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from runtimes.certs_d import MIRRORING, OLD, REGISTRIES, before_us, cleanup, configure, tree, written
from runtimes.killed import each_death
from runtimes.own_mounts import own_mounts

from spegel_consul.runtimes import atomic_files, hosts_files
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import BACKUP
from spegel_consul.runtimes.configure import conf_files, plan_registries_conf


@contextmanager
def small_tmpfs(directory: Path) -> Iterator[None]:
    with own_mounts():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "none", directory], check=True)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    with small_tmpfs(directory):
        yield directory


@pytest.mark.real
def test_no_other_process_can_hold_a_file_of_the_small_disk(tmp_path: Path) -> None:
    """It would keep the file's blocks, and the disk from being unmounted."""
    directory = tmp_path / "disk"
    directory.mkdir()
    listing = ["sh", "-c", 'read -r go; ls "$0"', directory]
    with subprocess.Popen(listing, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other, small_tmpfs(directory):
        (directory / "ours").touch()
        assert other.communicate(b"go\n")[0] == b""
    assert list(directory.iterdir()) == []
    assert Path.cwd() != Path("/")


@pytest.mark.real
def test_a_full_disk_leaves_the_old_file_whole(small_disk: Path) -> None:
    base = before_us(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * 4096)
    configure(base)
    cleanup(base)
    before = written(base)
    with (small_disk / "full").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 4096)
    content = tree(base)
    with pytest.raises(DiskError, match="No space left on device: nothing was changed in it; free some disk space"):
        configure(base)
    assert written(base) == before
    # room for the record and no more
    (small_disk / "ballast").unlink()
    with pytest.raises(DiskError, match="No space left"):
        configure(base)
    for name, text in before.items():
        assert written(base)[name] == text or "10.0.0.7" in written(base)[name]
    cleanup(base)
    assert tree(base) == content


@pytest.mark.real
def test_a_disk_that_is_read_only_says_so(small_disk: Path) -> None:
    base = before_us(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DiskError, match="Read-only file system: mount it so that it can be written"):
        configure(base)


@pytest.mark.real
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    for path in (tmp_path, *tmp_path.parents):
        if path == Path("/"):
            break
        path.chmod(path.stat().st_mode | 0o055)
    before = tree(tmp_path)
    assert "run as root" in said_by_nobody(lambda: configure(base))
    assert tree(tmp_path) == before
    configure(base)
    before = tree(tmp_path)
    assert "run as root" in said_by_nobody(lambda: cleanup(base))
    assert tree(tmp_path) == before


@pytest.mark.real
def test_a_directory_below_one_that_only_root_may_enter(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:-1]):
        path.chmod(path.stat().st_mode | 0o055)
    private = tmp_path / "private"
    base = private / "containers"
    (base / "registries.conf.d").mkdir(parents=True)
    (base / "registries.conf").touch()
    private.chmod(0o700)

    def conf() -> None:
        plan_registries_conf(base, REGISTRIES, MIRRORING, keep_existing=True)

    for work in (partial(configure, base), partial(cleanup, base), conf, partial(conf_files, base)):
        assert "run as root" in said_by_nobody(work)

    def hosts() -> None:
        raise DiskError(str(hosts_files.files(base)))

    assert said_by_nobody(hosts) == "[]"
    # a directory that is a link to a private one
    public = tmp_path / "certs.d"
    public.mkdir(mode=0o755)
    (public / "ghcr.io").symlink_to(private / "ghcr.io")
    assert "run as root" in said_by_nobody(lambda: configure(public))


def said_by_nobody(work: Callable[[], object]) -> str:
    """The DiskError that ``work`` ends with when the user nobody does it."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            work()
        except DiskError as exc:
            os.write(writing, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture(params=[0o077, 0])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("there", [True, False])
def test_other_users_read_our_files_under_any_umask(tmp_path: Path, there: bool) -> None:
    base = tmp_path / "containerd/certs.d"
    if there:
        base.mkdir(parents=True)
        for made in (base, base.parent):
            made.chmod(0o755)
    configure(base)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    base = before_us(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(atomic_files.os, "link", refuse)
    configure(base)
    cleanup(base)
    assert tree(tmp_path) == before


def test_originals_come_back_across_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if (BACKUP in Path(source).parts) != (BACKUP in Path(target).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    def link(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    base = before_us(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(atomic_files.os, "rename", rename)
    monkeypatch.setattr(atomic_files.os, "link", link)
    configure(base)
    deaths = 0
    for number in each_death(lambda: cleanup(base), lambda: configure(base)):
        deaths += 1
        assert set(written(base)) >= {"ghcr.io/hosts.toml", "quay.io/hosts.toml"}
        cleanup(base)
        assert tree(tmp_path) == before, number
    assert deaths > 10
    cleanup(base)
    assert tree(tmp_path) == before


@pytest.mark.real
@pytest.mark.parametrize(("mounted", "left"), [("a b", {"a b"}), ("a b/c/certs.d", {"a b", "a b/c", "a b/c/certs.d"})])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_that_we_made_and_that_a_container_has_mounted(
    tmp_path: Path, mounted: str, left: set[str], read_only: bool
) -> None:
    """The job's container cleans up what the command has made on the host. Its other files may be read-only."""
    root = tmp_path / "root"
    base = root / "a b/c/certs.d"
    root.mkdir()
    configure(base)
    with mount_of_its_own(root, mounted, read_only=read_only):
        cleanup(base)
    assert set(tree(root)) == left
    assert cleanup(base) == []


@contextmanager
def mount_of_its_own(root: Path, name: str, *, read_only: bool) -> Iterator[None]:
    """``root`` with a mount for its directory ``name``, as a container has it; ``read_only``: the rest of ``root``."""
    with own_mounts():
        subprocess.run(["mount", "--bind", root, root], check=True)
        subprocess.run(["mount", "--bind", root / name, root / name], check=True)
        if read_only:
            subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        yield


@pytest.mark.real
def test_a_registry_whose_directory_is_a_small_disk_of_its_own(tmp_path: Path) -> None:
    """The original and its backup are on two file systems, and the one that it is to come back to fills up."""
    base = before_us(tmp_path)
    mounted = base / "ghcr.io"
    with small_tmpfs(mounted):
        hosts = mounted / "hosts.toml"
        old = OLD + "# and more than a block\n" * 200
        hosts.write_text(old)
        hosts.chmod(0o640)
        os.chown(hosts, 7, 8)
        os.utime(hosts, (1e9, 1e9))
        before = tree(tmp_path)
        with filled(mounted), pytest.raises(DiskError, match="No space left on device: nothing was changed in it"):
            configure(base)
        assert hosts.read_text() == old
        configure(base)
        ours = hosts.read_text()
        assert (base / BACKUP / "ghcr.io/hosts.toml").stat().st_dev != hosts.stat().st_dev
        with filled(mounted), pytest.raises(DiskError, match=f"{hosts}: No space left"):
            cleanup(base)
        assert hosts.read_text() == ours
        assert not (base / "_default/hosts.toml").exists()
        cleanup(base)
        assert tree(tmp_path) == before


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """With a file that takes all the room that its disk has left."""
    with (directory / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    yield
    (directory / "full").unlink()
