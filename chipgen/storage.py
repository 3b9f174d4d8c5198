"""Folders on disk or behind an fsspec URL (`s3://bucket/path`), with whole-or-nothing writes.

Both classes offer the same few calls; names are relative, with "/" between their parts.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chipgen.errors import PictureError, Refusal

BUFFER = 1 << 20  # bytes: shards come in thousands of small parts
BLOCK = 1 << 26  # bytes of a large file that are read at a time
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of some file systems
TEMPORARY = ".tmp"  # suffix of a file that is being written; the first dot hides it as well


class LocalFolder:
    """A folder on a file system."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def sub(self, name: str) -> "LocalFolder":
        """Give a folder inside this one."""
        return LocalFolder(self.path / name)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or `length` bytes of it from `start` on."""
        # bare system calls: a file object costs as much as reading a small picture
        handle = os.open(path := f"{self.path}/{name}", os.O_RDONLY)
        try:
            if length is None:
                length = max(os.fstat(handle).st_size - start, 0)
            data = os.pread(handle, length, start)
            while len(data) < length and (
                more := os.pread(handle, length - len(data), start + len(data))
            ):
                data += more  # the system gives at most 2 GB at a time
            return data
        except OSError as error:  # calls on an open file don't know its name
            error.filename = path
            raise
        finally:
            os.close(handle)

    def write(self, name: str, *parts: bytes) -> None:
        """Write a file whole or not at all: temporary name, sync, rename, sync of the folder."""
        with self.create(name) as file:
            file.writelines(parts)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to be written, which is there when the block has ended without an error."""
        target = self.path / name
        temporary = target.parent / f".{target.name}{TEMPORARY}"
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _told_of(temporary, target), _claimed(temporary, target) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _forget(file.fileno())
                temporary.replace(target)  # before anyone else may empty it
            except BaseException:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
        with writing(target):
            _sync_folder(target.parent)

    def source(self, name: str) -> Path:
        """Give what a library that reads files by itself is to read."""
        return self.path / name

    def exists(self, name: str) -> bool:
        """Say whether a file or folder is there."""
        try:
            return (self.path / name).exists()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # nothing has such a name
                return False
            raise

    def size(self, name: str) -> int:
        """Give a file's size in bytes."""
        return (self.path / name).stat().st_size

    def version(self, name: str) -> str:
        """Say what changes when a file is written anew, without reading it."""
        found = (self.path / name).stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    def names(self) -> list[str]:
        """List what lies directly in the folder, sorted; empty where there is no folder."""
        return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []

    def is_empty(self) -> bool:
        """Say whether nothing lies in the folder, or no folder is there."""
        try:
            with os.scandir(self.path) as found:
                return next(found, None) is None
        except (FileNotFoundError, NotADirectoryError):
            return True

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(NotADirectoryError):  # what writes there next tells it better
            (self.path / name).unlink(missing_ok=True)

    def remove_tree(self, name: str) -> None:
        """Delete a folder with all that is in it, if it is there."""
        while (self.path / name).exists():
            with contextlib.suppress(FileNotFoundError):  # another run removes it as well
                shutil.rmtree(self.path / name)


class RemoteFolder:
    """A folder of an object store; its writes are whole because the store's own are."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.fs, self.path = _remote(self.url)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple:
        return (RemoteFolder, (self.url,))  # a worker opens connections of its own

    def sub(self, name: str) -> "RemoteFolder":
        """Give a folder inside this one."""
        return RemoteFolder(f"{self.url}/{name}")

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read an object, or `length` bytes of it from `start` on."""
        end = None if length is None else start + length
        with _told(self.url):
            return self.fs.cat_file(f"{self.path}/{name}", start=start, end=end)

    def write(self, name: str, *parts: bytes) -> None:
        """Write an object whole."""
        with _told(self.url):
            self.fs.pipe_file(f"{self.path}/{name}", b"".join(parts))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open an object to be written, which is there when the block has ended without an error.

        It is written to a temporary file first: stores differ in what a broken upload leaves.
        """
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            with _told(self.url):
                self.fs.put_file(file.name, f"{self.path}/{name}")

    def source(self, name: str) -> BinaryIO:
        """Give what a library that reads files by itself is to read."""
        with _told(self.url):
            return self.fs.open(f"{self.path}/{name}", "rb")

    def exists(self, name: str) -> bool:
        """Say whether an object or folder is there, asking the store and not a cache."""
        self.fs.invalidate_cache()
        with _told(self.url):
            return self.fs.exists(f"{self.path}/{name}")

    def size(self, name: str) -> int:
        """Give an object's size in bytes."""
        with _told(self.url):
            return self.fs.size(f"{self.path}/{name}")

    def version(self, name: str) -> str:
        """Say what changes when an object is written anew, without reading it."""
        self.fs.invalidate_cache()
        with _told(self.url):
            return str(self.fs.ukey(f"{self.path}/{name}"))

    def names(self) -> list[str]:
        """List what lies directly in the folder, sorted; empty where there is nothing."""
        self.fs.invalidate_cache()
        try:
            with _told(self.url):
                return sorted(p.rsplit("/", 1)[-1] for p in self.fs.ls(self.path, detail=False))
        except FileNotFoundError:
            return []

    def is_empty(self) -> bool:
        """Say whether nothing lies in the folder: a store has no others."""
        return not self.exists("")

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def remove_tree(self, name: str) -> None:
        """Delete a folder with all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.path}/{name}", recursive=True)


Folder = LocalFolder | RemoteFolder


def open_folder(where: str | Path) -> Folder:
    """Open a path or a URL; it need not exist yet."""
    return RemoteFolder(str(where)) if "://" in str(where) else LocalFolder(where)


def read_picture(folder: Folder, name: str) -> bytes:
    """Read a picture file; a fault of its own is a PictureError, one of the storage a Refusal."""
    try:
        return folder.read(name)
    except OSError as error:
        broken = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
        if isinstance(error, broken) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise PictureError("missing_file", error.strerror or str(error)) from error
        raise Refusal(
            f"picture {folder}/{name}: {error}; that is the storage and not the picture, so it is "
            f"not rejected; run the same command again to go on"
        ) from error


def read_listed_picture(folder: Folder, name: str) -> bytes:
    """Read a picture of a data set in the same way; refuses where its whole folder has gone.

    An empty folder is where a disk should be mounted, and where neither a picture nor its folder
    may be read, credentials have expired: all pictures would be rejected for good.
    """
    try:
        return read_picture(folder, name)
    except PictureError as error:
        if fault := _fault_of(folder, isinstance(error.__cause__, PermissionError)):
            raise Refusal(f"picture folder {folder}: {fault}") from error
        raise


def _fault_of(folder: Folder, denied: bool) -> str | None:
    """Say why nothing can be read in a folder, if that is so; a picture may have been denied."""
    try:
        if folder.is_empty():
            return "not there, or empty; mount it, or plan again with the new --data"
    except PermissionError as error:  # pictures may be read there, though not listed
        if denied:
            return (
                f"neither the picture nor the folder may be read ({error}); renew the "
                f"credentials, and run the same command again to go on"
            )
    return None


def digest_of(folder: Folder, *names: str) -> str:
    """Hash files of any size, one after the other: sha256 as hex digits."""
    state = hashlib.sha256()
    for name in names:
        for start in range(0, folder.size(name), BLOCK):
            state.update(folder.read(name, start, BLOCK))
    return state.hexdigest()


def _forget(file: int) -> None:
    """Give back the memory that caches a file just synced.

    Shards are not read again soon, and a set of them would push everything else out. It also
    saves time: getting fresh memory for the cache was seen to cost more than copying into it.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _claimed(temporary: Path, target: Path) -> BinaryIO:
    """Open a temporary file, empty, that no other process writes; what a killed one left is taken.

    Two runs by mistake would else write one file, and the first to be ready would rename it
    while the other is in the midst of it.
    """
    while True:
        file = temporary.open("ab", buffering=BUFFER)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Refusal(
                f"cannot write {target}: another run is writing it; wait for that run, or stop it, "
                f"and run the same command again"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        with contextlib.suppress(FileNotFoundError):  # renamed or removed by who had it before
            if os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
                file.truncate(0)
                return file
        file.close()


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Let what fails within tell which file could not be written, and what may help."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, about what it was reading
            raise
        raise _explained(error, target) from error


@contextlib.contextmanager
def _told_of(temporary: Path, target: Path) -> Iterator[None]:
    """Do the same for what is written within, but not for what others do there meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # as above
            raise
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        raise _explained(error, target) from error


def _explained(error: OSError, target: Path) -> Exception:
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EFBIG: "files may not be that large there (ulimit -f, or the file system)",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EACCES: "no permission to write there; choose another folder",
        errno.ENOTDIR: "a part of that path is a file and not a folder",
        errno.ENOENT: "another run has cleared that folder; run the same command again",
        errno.EEXIST: "a part of that path is a file and not a folder",
    }
    if error.errno in remedies:
        return Refusal(f"cannot write {target}: {remedies[error.errno]}")
    # calls on an open file don't know its name, and others name the temporary one
    return OSError(error.errno, error.strerror, str(target))


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what a store's client raises (no credentials, no connection) into a refusal."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each client has a hierarchy of its own
        raise Refusal(f"{url}: {type(error).__name__}: {error}") from error


def _remote(url: str) -> tuple[Any, str]:
    import fsspec  # only those who ask for a URL pay for the import

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise Refusal(f"{url}: {error}; for S3: pip install s3fs") from error
    except ValueError as error:
        raise Refusal(f"{url}: {error}") from error
