"""The messages of the roll call: what is sent, and how each side proves that it knows the token.

    process 0 -> caller   moco_jax 1 NONCE
    caller -> process 0   moco_jax 1 PROCESS PROCESSES NONCE PROOF
    process 0 -> caller   moco_jax 1 go PROOF          or   moco_jax 1 error TEXT

A message is one line of ASCII with a fixed maximum length, and a regular expression reads it. A
proof is an HMAC over both nonces, so a proof that was seen on the network is of no use in another
connection. Without a token, a proof is `-`.
"""

import hashlib
import hmac
import os
import re
import secrets
from typing import NamedTuple

from moco_jax.parallel.addresses import WrongFlags

CALL_LIMIT = 200  # bytes of a challenge or a call
ANSWER_LIMIT = 4096  # bytes of an answer

_VARIABLE = "MOCO_JAX_TOKEN"
_SHORTEST = 16  # characters of a token
_HEAD = b"moco_jax 1 "
_CHALLENGE = re.compile(rb"moco_jax 1 ([0-9a-f]{32})\n")
_CALL = re.compile(
    rb"moco_jax 1 (0|[1-9][0-9]{0,6}) ([1-9][0-9]{0,6}) ([0-9a-f]{32}) (-|[0-9a-f]{64})\n"
)
_ANSWER = re.compile(rb"moco_jax 1 (?:go (-|[0-9a-f]{64})|error ([ -~]+))\n")

TOKEN_DIFFERS = f"the token differs: set the same {_VARIABLE} for all processes of the run"


class Call(NamedTuple):
    """What a caller says: its number, the number of processes, and its proof."""

    process: int
    processes: int
    nonce: bytes
    proof: bytes


def token() -> bytes:
    """Returns the secret of the run, from MOCO_JAX_TOKEN; empty if the variable is not set.

    Raises:
      WrongFlags: if it is too short.
    """
    given = os.environb.get(_VARIABLE.encode())
    if given is not None and len(given) < _SHORTEST:
        raise WrongFlags(
            f"{_VARIABLE} has {len(given)} characters and must have at least {_SHORTEST}; make one "
            f"for all processes of the run: export {_VARIABLE}=$(openssl rand -hex 16)"
        )
    return given or b""


def nonce() -> bytes:
    """Returns 128 random bits in hexadecimal digits."""
    return secrets.token_hex(16).encode()


def challenge(nonce: bytes) -> bytes:
    """Returns the first message of process 0."""
    return _HEAD + nonce + b"\n"


def read_challenge(message: bytes) -> bytes | None:
    """Returns the nonce of process 0; None if another program sent the message."""
    match = _CHALLENGE.fullmatch(message)
    return match and match[1]


def call(secret: bytes, theirs: bytes, own: bytes, process: int, processes: int) -> bytes:
    """Returns the message of a caller. `theirs` and `own` are the nonces of the two sides."""
    proof = _proof(secret, b"caller", theirs, own, process, processes)
    return _HEAD + b"%d %d %s %s\n" % (process, processes, own, proof)


def read_call(message: bytes) -> Call | None:
    """Returns the call; None if another program sent the message."""
    match = _CALL.fullmatch(message)
    return Call(int(match[1]), int(match[2]), match[3], match[4]) if match else None


def is_proven(secret: bytes, own: bytes, call: Call) -> bool:
    """Returns whether the caller knows the token. `own` is the nonce of process 0."""
    proof = _proof(secret, b"caller", own, call.nonce, call.process, call.processes)
    return hmac.compare_digest(proof, call.proof)


def go(secret: bytes, own: bytes, call: Call) -> bytes:
    """Returns process 0's answer when all processes have called."""
    proof = _proof(secret, b"process 0", own, call.nonce, call.process, call.processes)
    return _HEAD + b"go " + proof + b"\n"


def error(text: str) -> bytes:
    """Returns process 0's answer to a process that can't join."""
    plain = re.sub(r"[^ -~]", "?", text)[: ANSWER_LIMIT - len(_HEAD) - 7]
    return _HEAD + b"error " + plain.encode() + b"\n"


def read_answer(
    secret: bytes, theirs: bytes, own: bytes, process: int, processes: int, message: bytes
) -> str | None:
    """Returns "" if the run begins, or the error of process 0; None: another program answers."""
    match = _ANSWER.fullmatch(message)
    if not match:
        return None
    if match[2]:
        return match[2].decode()
    proof = _proof(secret, b"process 0", theirs, own, process, processes)
    return "" if hmac.compare_digest(proof, match[1]) else None


def _proof(
    secret: bytes, side: bytes, first: bytes, second: bytes, process: int, processes: int
) -> bytes:
    """Returns the HMAC of one side; `first` is the nonce of process 0, `second` the caller's."""
    if not secret:
        return b"-"
    message = b" ".join([side, first, second, b"%d" % process, b"%d" % processes])
    return hmac.new(secret, message, hashlib.sha256).hexdigest().encode()
