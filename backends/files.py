"""The one tree that people see: what is stored, and the files inside their running environments, joined.

`/envs/<environment>/…` leads to `environment_files`, `/images/…` to `archives.shelf`, everything else to the tree of
stored data. No rule of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from backends.environment_files import EnvironmentTree
from backends.environments import Environments
from backends.guest import Guests
from storage.access import Caller
from storage.errors import BadInput, NotAllowed
from storage.tree import Node, Reader, Space, Tree, Writer

README = b"""\
What is here
============
/datasets/<name>/<version>/...   the data sets of your workspace
/models/<name>/<version>/...     its models, the same way
/shared/<workspace>/...          what other workspaces share with yours, to read
/images/<name>_<tag>.tar         put an archive of an image here (docker save): it becomes the image name:tag
/envs/<environment>/...          your home directory inside each of your running environments
/README.txt                      this text

A data set has versions. Make the first:        mkdir /datasets/mnist    mkdir /datasets/mnist/v1
then send files or whole directories:           sftp> put -r images /datasets/mnist/v1
                                                lftp> mirror -R images /datasets/mnist/v1/images
                                                $ scp -r images ...:/datasets/mnist/v1
Everybody in the workspace can read a data set; only its owner can change it.

A file appears under its name when all of it has arrived, and not before. Times of modification are kept, so that
lftp mirror -R  and  rclone copy  send only what is new. Data sets and environments do not share one disk: copy
between them, moving is not possible.
"""
_README_NODE = Node("README.txt", is_directory=False, size=len(README), mode=0o444)
_ROOT = Node("/", is_directory=True, mode=0o755)
_IMAGES = Node("images", is_directory=True, mode=0o755)
_ENVS = Node("envs", is_directory=True, mode=0o555)


class BytesReader:
    """A file that is a constant; a `storage.tree.Reader`."""

    def __init__(self, node: Node, content: bytes) -> None:
        self.node = node
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def close(self) -> None:
        pass


class Files:
    """Both trees under one root; a `storage.tree.Tree`."""

    def __init__(self, data: Tree, environments: Environments, guests: Guests, images: Tree | None = None) -> None:
        self._data = data
        self._images = images
        self._environments = EnvironmentTree(environments, guests)

    async def close(self) -> None:
        """Let go of the SFTP clients inside environments."""
        await self._environments.close()

    async def stat(self, caller: Caller, path: str) -> Node:
        if path == "/":
            return _ROOT
        if path == "/README.txt":
            return _README_NODE
        if path == "/envs":
            return _ENVS
        tree, inner = self._find(path)
        return await tree.stat(caller, inner)

    async def check(self, caller: Caller, path: str) -> None:
        if path not in ("/", "/README.txt", "/envs"):
            tree, inner = self._find(path)
            await tree.check(caller, inner)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        if path == "/":
            for node in await self._root(caller):
                yield node
            return
        if path == "/README.txt":
            raise BadInput("'/README.txt' is not a directory")
        tree, inner = self._find(path)
        async for node in tree.list(caller, inner):
            yield node

    async def open_reader(self, caller: Caller, path: str) -> Reader:
        if path == "/README.txt":
            return BytesReader(_README_NODE, README)
        tree, inner = self._find(path)
        return await tree.open_reader(caller, inner)

    async def open_writer(
        self,
        caller: Caller,
        path: str,
        *,
        truncate: bool,
        exclusive: bool = False,
        mtime: int | None = None,
    ) -> Writer:
        tree, inner = self._find_changeable(path)
        return await tree.open_writer(caller, inner, truncate=truncate, exclusive=exclusive, mtime=mtime)

    async def mkdir(self, caller: Caller, path: str) -> None:
        tree, inner = self._find_changeable(path)
        await tree.mkdir(caller, inner)

    async def rmdir(self, caller: Caller, path: str) -> None:
        tree, inner = self._find_changeable(path)
        await tree.rmdir(caller, inner)

    async def remove(self, caller: Caller, path: str) -> None:
        tree, inner = self._find_changeable(path)
        await tree.remove(caller, inner)

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        tree, inner = self._find_changeable(old)
        other, target = self._find_changeable(new)
        if tree is not other:
            raise BadInput("files cannot be renamed between /envs, /images and the rest: copy them")
        await tree.rename(caller, inner, target, replace=replace)

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        tree, inner = self._find_changeable(path)
        await tree.set_mtime(caller, inner, seconds)

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        if path in ("/", "/README.txt", "/envs"):
            return ""
        tree, inner = self._find(path)
        return await tree.digest(caller, inner, algorithm)

    async def space(self, caller: Caller, path: str) -> Space:
        if path in ("/", "/README.txt", "/envs"):
            return await self._data.space(caller, "/")
        tree, inner = self._find(path)
        return await tree.space(caller, inner)

    async def _root(self, caller: Caller) -> Sequence[Node]:
        nodes = {"README.txt": _README_NODE, "envs": _ENVS}
        if self._images is not None:
            nodes["images"] = _IMAGES
        async for node in self._data.list(caller, "/"):
            nodes.setdefault(node.name, node)
        return [nodes[name] for name in sorted(nodes)]

    def _find(self, path: str) -> tuple[Tree, str]:
        if path == "/envs":
            return self._environments, "/"
        if path.startswith("/envs/"):
            return self._environments, path[len("/envs") :]
        if self._images is not None and (path == "/images" or path.startswith("/images/")):
            return self._images, path[len("/images") :] or "/"
        return self._data, path

    def _find_changeable(self, path: str) -> tuple[Tree, str]:
        if path in ("/", "/README.txt", "/envs"):
            raise NotAllowed(f"'{path}' cannot be changed")
        return self._find(path)
