"""Ed25519 keys in files, and signatures of events; PyNaCl does the arithmetic."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.errors import InvalidRegistry, MissingExtra, OutputExists
from poise.lifecycle.registry_records import EventSignature, RegistryEvent, canonical_bytes
from poise.storage.disk_errors import save_failed

__all__ = ["make_key", "public_keys", "sign_event", "signature_holds"]

KEY_HEAD = "poise-ed25519-signing-key "
PUBLIC_HEAD = "poise-ed25519-public-key "
PUBLIC_KEY = re.compile(rf"(?:{PUBLIC_HEAD})?([0-9a-f]{{64}})")


def _nacl_signing() -> Any:
    try:
        from nacl import signing
    except ImportError as error:
        raise MissingExtra.of("Signing needs PyNaCl", "registry") from error
    return signing


def make_key(path: Path) -> tuple[Path, str]:
    """Write a new signing key, readable by its owner alone, and its public key beside it.

    Returns:
        The public key's file, and the public key.

    Raises:
        OutputExists: one of the files is there.
        SaveFailed: the disk refused.
        MissingExtra: PyNaCl is not installed.
    """
    key = _nacl_signing().SigningKey.generate()
    public = path.with_name(path.name + ".pub")
    texts = ((path, 0o600, f"{KEY_HEAD}{bytes(key).hex()}\n"), (public, 0o644, f"{PUBLIC_HEAD}{_public(key)}\n"))
    for place, _, _ in texts:
        if place.exists() or place.is_symlink():
            raise OutputExists(f"{place} exists, and a key is never written over; choose another path.")
    for place, mode, text in texts:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                file.write(text)
        except OSError as error:
            raise save_failed(f"Cannot write the key {place}", error) from error
    return public, _public(key)


def sign_event(event: RegistryEvent, path: Path) -> EventSignature:
    """Sign an event with the key of a file.

    Raises:
        InvalidRegistry: there is no key in the file, or others may read it.
        MissingExtra: PyNaCl is not installed.
    """
    signing = _nacl_signing()
    try:
        text, mode = path.read_text("utf-8").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRegistry(
            f"Cannot read the key {path}: {getattr(error, 'strerror', '') or 'it is no text'}; make one with "
            "`poise registry keygen`."
        ) from error
    if not re.fullmatch(rf"{KEY_HEAD}[0-9a-f]{{64}}", text):
        raise InvalidRegistry(f"{path} holds no signing key; name the file that `poise registry keygen` wrote.")
    if os.name == "posix" and mode & 0o077:
        raise InvalidRegistry(f"Others may read the key {path} (mode {mode & 0o777:o}); run chmod 600 on it.")
    key = signing.SigningKey(bytes.fromhex(text.removeprefix(KEY_HEAD)))
    signature = key.sign(canonical_bytes(event)).signature.hex()
    return EventSignature(key=_public(key), signature=signature)


def signature_holds(event: RegistryEvent, signature: EventSignature) -> bool:
    """Whether a signature is of this event and by the key that it names."""
    signing = _nacl_signing()
    try:
        key = signing.VerifyKey(bytes.fromhex(signature.key))
        key.verify(canonical_bytes(event), bytes.fromhex(signature.signature))
    except Exception:  # PyNaCl raises BadSignatureError, ValueError or TypeError
        return False
    return True


def public_keys(texts: Sequence[str]) -> frozenset[str]:
    """Public keys from files or in hexadecimal.

    Raises:
        InvalidRegistry: one is neither.
    """
    keys = set()
    for one in texts:
        text = one
        if Path(one).is_file():
            text = Path(one).read_text("utf-8", errors="replace").strip()
        if not (matched := PUBLIC_KEY.fullmatch(text)):
            what = f"{one} is not a public key" if Path(one).exists() else f"There is no file {one}"
            raise InvalidRegistry(f"{what}; give the .pub file beside a signing key, or the 64 digits in it.")
        keys.add(matched[1])
    return frozenset(keys)


def _public(key: Any) -> str:
    return bytes(key.verify_key).hex()
