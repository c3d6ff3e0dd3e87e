"""What is kept of a password, and how one is compared with it.

Argon2id with 19 MiB, two passes and one lane (the OWASP cheat sheet's figures): 0.1 s on the machine that we build on. Where the
cryptography library cannot (its OpenSSL is older than 3.2), scrypt with N = 2**15, r = 8, p = 3 from the standard library; both
are understood everywhere they can be computed, and a login with the right password renews a hash that is not of the present kind.

Comparing takes the same time whatever the password and wherever the difference is, and also where there is no account (`dummy`). At most two are computed
at a time and eight wait: a flood of logins must take neither the service's memory nor all its threads.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import threading
import unicodedata
from functools import cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from secondsite.errors import InvalidInputError, UnavailableError, UnsupportedError

LENGTH_MIN: Final = 12
LENGTH_MAX: Final = 256
SALT: Final = 16
_HASH: Final = 32
_KIND: Final = re.compile(r"\$(argon2id)\$v=19\$m=(\d{1,7}),t=(\d{1,2}),p=(\d)\$([\w+/]+)\$([\w+/]+)|"
                          r"\$(scrypt)\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d)\$([\w+/]+)\$([\w+/]+)")  # fmt: skip
ARGON: Final = "$argon2id$v=19$m=19456,t=2,p=1$"
SCRYPT: Final = "$scrypt$ln=15,r=8,p=3$"
_at_once = threading.BoundedSemaphore(2)
_waiting = threading.BoundedSemaphore(8)


def check_quality(password: str, name: str) -> None:
    """Refuse what is guessed at once. Length is what counts; no rules about kinds of characters."""
    if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
        raise InvalidInputError(
            f"a password has {LENGTH_MIN} to {LENGTH_MAX} characters",
            hint="take four words that do not belong together",
        )
    if len(set(password)) < 5 or name.casefold() in password.casefold():
        raise InvalidInputError(
            "this password is too easy to guess", hint="not the name, not one character again and again"
        )


def hash_password(password: str, salt: bytes) -> str:
    """Return what is kept: kind, parameters, salt and hash, as one text."""
    for head in (ARGON, SCRYPT):
        try:
            return f"{head}{_text(salt)}${_text(_compute(head, password, salt))}"
        except (UnsupportedAlgorithm, UnsupportedError):
            continue
    raise UnsupportedError("neither argon2id nor scrypt can be computed here")


def matches(password: str, kept: str) -> bool:
    """Whether this is the password; the time that it takes does not tell how far off it is.

    Raises:
        UnavailableError: too many are being compared at this moment.
    """
    head, salt, digest = _parts(kept)
    if not _waiting.acquire(blocking=False):
        raise UnavailableError("too many logins at once", hint="try again in a moment")
    try:
        found = _compute(head, password, salt)
    except UnsupportedAlgorithm as error:
        raise UnsupportedError(
            "this machine cannot compute argon2id",
            hint="set the password again on it, or update its cryptography library",
        ) from error
    finally:
        _waiting.release()
    return hmac.compare_digest(found, digest)


def outdated(kept: str) -> bool:
    """Whether the hash should be made again at the next chance."""
    return _parts(kept)[0] not in {ARGON, _best()}


def _compute(head: str, password: str, salt: bytes) -> bytes:
    # The same password may be typed as different bytes: composed and decomposed letters.
    data = unicodedata.normalize("NFKC", password).encode()
    figures = [int(figure) for figure in re.findall(r"=(\d+)", head)]
    with _at_once:
        if head.startswith("$argon2id"):
            _version, memory, passes, lanes = figures
            return Argon2id(
                salt=salt, length=_HASH, iterations=passes, lanes=lanes, memory_cost=memory
            ).derive(data)
        log_n, block, lanes = figures
        return hashlib.scrypt(data, salt=salt, n=1 << log_n, r=block, p=lanes, maxmem=256 << 20, dklen=_HASH)


def _best() -> str:
    try:
        Argon2id(salt=b"0" * SALT, length=_HASH, iterations=1, lanes=1, memory_cost=8)
    except UnsupportedAlgorithm:
        return SCRYPT
    return ARGON


def _parts(kept: str) -> tuple[str, bytes, bytes]:
    found = _KIND.fullmatch(kept)
    if found is None:
        raise UnsupportedError("this password was kept in a way that this version does not know")
    head, salt, digest = kept.rsplit("$", 2)
    return f"{head}$", _bytes(salt), _bytes(digest)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


@cache
def dummy() -> str:
    """What is compared with where there is no account, so that the answer takes as long."""
    return hash_password("nobody's password", b"secondsite-dummy")
