"""Chat templates applied: they are programs of whoever made the model, so they run in a child with limits.

    render_chats(tokenizer, [Chat([{"role": "user", "content": "1+1"}])], {"add_generation_prompt": True})

The child is a fork: it has the tokenizer at once, with code of its own if that is trusted. It runs the template,
and neither threads nor devices; chats and texts go through a pipe.
A template may raise anything, never end, or fill the memory: each is one error that names the chat.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

CPU_LIMIT_S = 5.0
"""CPU time for one chat, which takes milliseconds."""
WALL_LIMIT_S = 600.0
"""Against a child that neither computes nor answers."""
MEMORY_BYTES = 2**30
"""Memory that the child may take in addition to what it began with."""
MAX_TEXT_BYTES = 2**24
"""Of one rendered chat."""
MARK = "777"
"""A text that no template changes."""

_TEXT, _ERROR, _LIMIT = b"t", b"e", b"l"


@dataclass(frozen=True)
class Chat:
    """What a template is applied to: messages, and the tools that they may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None


class RefusedChatError(ValueError):
    """A chat template gave no text for a chat; `index` is the chat's place."""

    def __init__(self, reason: str, index: int, *, met_limit: bool = True) -> None:
        """`met_limit`: it was ended, and did not end by an error of its own."""
        super().__init__(reason)
        self.index = index
        self.met_limit = met_limit


def render_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], arguments: Mapping[str, Any]
) -> list[str]:
    """The text of every chat; RefusedChatError, whose text is one line, for the first without one.

    A content of several text parts is given to the template as it is, or as one text if the template takes only
    texts; and a text as a part, if it takes only parts.
    """
    children = _shared.get()
    if children is None:
        with shared_children():
            return render_chats(tokenizer, chats, arguments)
    key = (id(tokenizer), str(tokenizer.chat_template))
    child = children.pop(key, None) or TemplateProcess(tokenizer)
    if isinstance(child, RefusedChatError):
        children[key] = child
        raise child
    try:
        texts = child.texts(chats, arguments)
    except RefusedChatError as error:
        child.close()
        if error.met_limit and len(chats) == 1:  # a short question: no other is waited for
            children[key] = error
        raise
    children[key] = child
    return texts


@contextmanager
def shared_children() -> Iterator[None]:
    """Inside, one child renders all chats of a tokenizer; outside, each call of `render_chats` has its own."""
    children: Children = {}
    token = _shared.set(children)
    try:
        yield
    finally:
        _shared.reset(token)
        for child in children.values():
            if isinstance(child, TemplateProcess):
                child.close()


class TemplateProcess:
    """A child that renders chats with the template of one tokenizer. An error ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._tokenizer = tokenizer  # so that its id stays its own
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(ours, theirs, tokenizer), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe: Any = ours

    def texts(self, chats: Sequence[Chat], arguments: Mapping[str, Any]) -> list[str]:
        """The text of every chat, in order; RefusedChatError."""
        try:
            self._pipe.send((chats, arguments))
        except BrokenPipeError:
            self._process.join()
            raise RefusedChatError(_end_of(self._process.exitcode), 0) from None
        return [self._next_text(index) for index in range(len(chats))]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _next_text(self, index: int) -> str:
        if not self._pipe.poll(WALL_LIMIT_S):
            raise RefusedChatError(f"it gives no answer in {WALL_LIMIT_S:g} s", index)
        try:
            answer = self._pipe.recv_bytes(MAX_TEXT_BYTES + 1)
        except EOFError:
            self._process.join()
            raise RefusedChatError(_end_of(self._process.exitcode), index) from None
        except OSError as error:  # the message is longer
            raise RefusedChatError(f"its text is longer than {MAX_TEXT_BYTES:,} bytes", index) from error
        text = answer[1:].decode()
        if answer[:1] != _TEXT:
            raise RefusedChatError(text, index, met_limit=answer[:1] == _LIMIT)
        return text


Children = dict[tuple[int, str], TemplateProcess | RefusedChatError]
_shared: ContextVar[Children | None] = ContextVar("shared children", default=None)


def _end_of(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return f"it does not end in {CPU_LIMIT_S:g} s of CPU time"
    return f"it ended its process (status {status})"


# -- in the child -------------------------------------------------------------------------------------------------


def _serve(parents: Any, pipe: Any, tokenizer: Any) -> None:
    """Answer requests with texts, until an error or until nobody asks any more; this process ends here."""
    try:
        parents.close()  # so that the pipe ends with the parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        while True:
            chats, arguments = pipe.recv()
            _limit_memory(*limits)
            _answer_all(pipe, _texts(tokenizer, chats, arguments))
            resource.setrlimit(resource.RLIMIT_AS, limits)
    finally:
        os._exit(0)


def _answer_all(pipe: Any, texts: Iterator[str]) -> None:
    while True:
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        answer = _answer(texts)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if answer is None:
            return
        pipe.send_bytes(answer)


def _answer(texts: Iterator[str]) -> bytes | None:
    try:
        text = next(texts, None)
        return None if text is None else _TEXT + str(text).encode()
    except MemoryError:
        return _LIMIT + f"it takes more than {MEMORY_BYTES >> 20:,} MiB of memory".encode()
    except Exception as error:  # noqa: BLE001 - a template is a program: it can raise anything
        reason = " ".join(str(error)[:1000].split())
        kind = type(error).__name__
        is_said = type(error).__module__.startswith("jinja2") and reason
        return _ERROR + (reason if is_said else f"{kind}: {reason}" if reason else kind).encode("utf-8", "replace")


def _limit_memory(soft: int, hard: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        has_now = int(file.read().split()[0]) * resource.getpagesize()
    wanted = has_now + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))


def _texts(tokenizer: Any, chats: Sequence[Chat], arguments: Mapping[str, Any]) -> Iterator[str]:
    def applied(chat: Chat) -> str:
        tools = {} if chat.tools is None else {"tools": chat.tools}
        return tokenizer.apply_chat_template(chat.messages, **{**arguments, **tools, "tokenize": False})

    def writes(content: Any) -> bool:
        try:
            text = applied(Chat([{"role": "user", "content": content}]))
        except Exception:  # noqa: BLE001 - then the form is not to blame: the chats themselves will tell
            return False
        return MARK in text and "'text'" not in text and '"text"' not in text

    contents = [message.get("content") for chat in chats for message in chat.messages]
    takes_text = writes(MARK)
    needs_parts = not takes_text or any(isinstance(content, list) for content in contents)
    takes_parts = needs_parts and writes(_parts(MARK))
    for chat in chats:
        messages = [_fitting(message, takes_text=takes_text, takes_parts=takes_parts) for message in chat.messages]
        yield applied(Chat(messages, chat.tools))


def _fitting(message: Mapping[str, Any], *, takes_text: bool, takes_parts: bool) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list) and not takes_parts:
        return {**message, "content": "".join(part["text"] for part in content)}
    if isinstance(content, str) and takes_parts and not takes_text:
        return {**message, "content": _parts(content)}
    return dict(message)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
