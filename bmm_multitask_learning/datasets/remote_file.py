"""A data file with a pinned address and checksum, and where on this machine it may lie."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RemoteFile"]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        folder: the data set's folder inside a data home.
        name: the file's name inside that folder.
        sha256: hexadecimal SHA-256 of the file's bytes.
        url: address of a fixed version; None where the file is published nowhere.
    """

    folder: str
    name: str
    sha256: str
    url: str | None

    def path(self, data_home: str | os.PathLike[str] | None = None) -> Path:
        """Find the file, or download it, and check its bytes.

        Looked for in `data_home`, then in `$BMM_DATA_HOME`, then in pooch's cache; downloaded into
        that cache where it is in none of them.

        Args:
            data_home: folder that holds the data set's folder.

        Returns:
            Path of a file whose SHA-256 is the expected one.

        Raises:
            ValueError: a file of that name is there, and its bytes are not the expected ones.
            FileNotFoundError: it is nowhere here and has no address to download it from.
            ConnectionError: the download failed.
            ImportError: a download is needed and pooch is not installed.
        """
        homes = [Path(home) for home in (data_home, os.environ.get("BMM_DATA_HOME")) if home]
        for home in homes:
            candidate = home / self.folder / self.name
            if candidate.is_file():
                self._check(candidate)
                return candidate
        if self.url is None:
            raise FileNotFoundError(
                f"{self.folder}/{self.name} is published nowhere, so it must lie in data_home or "
                f"in the folder that BMM_DATA_HOME names; looked in {self._listed(homes)}."
            )
        return self._download(self.url, homes)

    def _check(self, path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{path} is not the expected file: its SHA-256 should be {self.sha256}, got "
                f"{found}. Delete it, or name another folder by data_home or BMM_DATA_HOME."
            )

    def _download(self, url: str, homes: list[Path]) -> Path:
        try:
            import pooch
        except ImportError as error:
            raise ImportError(
                f"{self.folder}/{self.name} is in none of {self._listed(homes)}, and downloading "
                "it needs pooch: pip install 'bmm-multitask-learning[data]'."
            ) from error
        cache = Path(pooch.os_cache("bmm-multitask-learning")) / self.folder
        try:
            return Path(pooch.retrieve(url, self.sha256, fname=self.name, path=cache))
        except OSError as error:
            raise ConnectionError(
                f"could not download {url} ({error}). Without a network, put the file into "
                f"DATA_HOME/{self.folder}/{self.name} and set BMM_DATA_HOME to DATA_HOME; looked "
                f"in {self._listed([*homes, cache.parent])}."
            ) from error

    @staticmethod
    def _listed(homes: list[Path]) -> str:
        return ", ".join(map(str, homes)) or "no folder (data_home and BMM_DATA_HOME are not set)"
