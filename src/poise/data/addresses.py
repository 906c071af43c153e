"""Addresses that fsspec knows, ``s3://``, ``hf://``, ``https://`` and the like, as files."""

from __future__ import annotations

import glob
from collections.abc import Callable

from poise.data.input_files import InputFile, import_extra
from poise.errors import InvalidArgument, InvalidData, MissingExtra, first_line

__all__ = ["check_no_password", "is_address", "locate_address"]

DRIVERS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "gs": "gcsfs",
    "gcs": "gcsfs",
}


def is_address(source: str) -> bool:
    """Whether a name is an address and not a path."""
    return "://" in source


def check_no_password(source: str) -> None:
    """Refuse an address that has a password in it: names of data are printed, and written into results.

    Raises:
        InvalidArgument: it has; says where credentials belong, without them.
    """
    for part in source.split("::"):
        scheme, _, place = part.partition("://")
        user, at, host = place.partition("/")[0].rpartition("@")
        if at and ":" in user:
            raise InvalidArgument(
                f"The address {scheme}://…@{host} has a password in it, which would be printed and written into "
                "results; leave it out, and give credentials in the environment or in fsspec's configuration."
            )


def locate_address(source: str, is_known: Callable[[InputFile], bool]) -> list[InputFile]:
    """The files at an address: one file, all in a folder and below, or those that a glob matches.

    Args:
        source: The address.
        is_known: Whether a file's name ends like a format that is read.

    Raises:
        InvalidArgument: it has a password in it.
        InvalidData: there is no such kind of address, or it cannot be reached.
        MissingExtra: the package that reads this kind is not installed.
    """
    check_no_password(source)
    fsspec = import_extra("fsspec", f"Reading {source}")
    protocol = source.partition("://")[0].rpartition("::")[2]
    file, is_web = InputFile(source, None), protocol in ("http", "https")
    try:
        system, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path) and not is_web:
            names = system.glob(path)
        elif is_known(file) or file.endings == ("", ".zip") or is_web or not system.isdir(path):
            return [file]
        else:
            names = system.find(path)
    except ImportError as error:
        registry = import_extra("fsspec.registry", f"Reading {source}")
        implementation = registry.known_implementations.get(protocol, {}).get("class", protocol)
        package = DRIVERS.get(protocol, implementation.partition(".")[0])
        if package == "fsspec":
            raise MissingExtra(
                f"Reading {source} needs more packages: {first_line(error).removesuffix('.')}."
            ) from error
        raise MissingExtra(f"Reading {source} needs {package}; install it with pip install {package}.") from error
    except ValueError as error:
        raise InvalidData(
            f"{source}: {first_line(error)}; use s3://, hf://, https:// or another of fsspec's."
        ) from error
    except Exception as error:
        raise InvalidData(f"{source}: cannot be reached, {first_line(error).removesuffix('.')}.") from error
    return [InputFile(system.unstrip_protocol(name), None) for name in sorted(names)]
