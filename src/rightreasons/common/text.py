"""Text from models, servers and files, made safe to show and to put into a prompt. Free of torch."""

from __future__ import annotations

import re

# Control characters other than tab and newline, characters that reverse the direction of text, and halves of surrogate pairs, which no file can hold.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff\ufeff]")
# The marks around the thoughts of open models. The opening mark is often part of the prompt, and the closing one is missing if the thoughts used up
# the cap.
_TAG = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning)>"
_OPENED = rf"<{_TAG}|\[THINK\]|\u25c1think\u25b7|<\|START_THINKING\|>|<\|channel\|>analysis"
_CLOSED = rf"</{_TAG}|\[/THINK\]|\u25c1/think\u25b7|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>"
# The folders of an absolute path, of at least one folder and a name. The // of an address is none.
_FOLDERS = re.compile(r"(?<![\w/:.])(?:[A-Za-z]:)?(?:[\\/][^\s\\/'\"()]+)*[\\/](?=[^\s\\/'\"()])")
_THOUGHTS = re.compile(rf"\A.*(?:{_CLOSED})|\A\s*(?:{_OPENED}).*\Z", re.DOTALL)


def drop_thoughts(text: str) -> str:
    """A model's text after its thoughts; "" if nothing follows them."""
    return _THOUGHTS.sub("", text).strip()


def clean_text(text: str) -> str:
    """``text`` for files, pages and terminals: characters that are not readable become a replacement character."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def drop_folders(text: str) -> str:
    """``text`` with absolute paths shortened to their last part, for what is handed on: the rest of a path names people and machines."""
    return _FOLDERS.sub("", text)


def contain(text: str, *tags: str) -> str:
    """``text`` changed so that it can neither open nor close the delimiters ``tags`` of a prompt, however they are spelled."""
    names = "|".join(map(re.escape, tags))
    return re.sub(rf"<(?=[\s/\u200b-\u200d\u2060\ufffd]*(?:{names}))", "&lt;", clean_text(text), flags=re.IGNORECASE)
